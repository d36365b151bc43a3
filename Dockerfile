# The mount as an image. How to run it: "Containers" in docs/operations.md.
#
#     docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD) --tag fasts3-mount .
#
# Both stages use the same Debian release: the program needs the C library that it was built with, or
# a newer one.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# The repository itself is not part of the build; --version shows this instead.
ARG COMMIT=
RUN FASTS3_MOUNT_COMMIT="$COMMIT" cargo build --release --locked --bin fasts3-mount

FROM debian:bookworm-slim
# fuse3 is for ordinary users: root mounts without it.
# The release says which versions there are.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates fuse3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/target/release/fasts3-mount /usr/bin/
RUN ln -s ../bin/fasts3-mount /usr/sbin/mount.fasts3
COPY packaging/copyright LICENSE /usr/share/doc/fasts3-mount/
# Root, because mounting needs it. A container that serves a mount made by another process
# (/dev/fd/N) needs no privileges: start it with --user.
ENTRYPOINT ["fasts3-mount"]
CMD ["--help"]
