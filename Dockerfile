# The mount as an image. How to run it: "Containers" in docs/operations.md.
#
#     docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD) --tag fasts3-mount .
#
# Both stages are of one Debian release: the program asks for the C library that it was built with,
# or a newer one.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# The repository itself is not part of the build; --version tells what is said here.
ARG COMMIT=
RUN FASTS3_MOUNT_COMMIT="$COMMIT" cargo build --release --locked --bin fasts3-mount

FROM debian:bookworm-slim
# fuse3 is for those who run the image as an ordinary user: root mounts without it.
# The release says which versions there are.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates fuse3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/target/release/fasts3-mount /usr/bin/
RUN ln -s ../bin/fasts3-mount /usr/sbin/mount.fasts3
COPY packaging/copyright LICENSE /usr/share/doc/fasts3-mount/
# As root, for that is who may mount. Only what is given its mount (/dev/fd/N) needs no privileges:
# start that with --user.
ENTRYPOINT ["fasts3-mount"]
CMD ["--help"]
