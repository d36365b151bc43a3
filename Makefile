# What CI calls, one target at a time. `make help` lists them.
SHELL := bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.PHONY: help fmt lint test fuzz contract ceph systemd deny demo bench deb libraries

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

fmt: ## check the formatting
	cargo fmt --all --check

lint: ## clippy, pedantic, warnings as errors; comments of at most 100 columns
	cargo clippy --workspace --all-targets --locked -- -D warnings
	! LC_ALL=C.UTF-8 grep -rnP '^(?=.{101}) *//' --include=*.rs src tests devserver benches examples build.rs

test: ## every test, as the README says
	cargo test --workspace --locked

fuzz: ## what must hold for any input, for a minute each: parsers of answers, names, options, mounts
	FASTS3_FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --workspace --lib --locked fuzz -- --test-threads=64 --nocapture

contract: ## the store contract against moto, an S3 server that others wrote
	tests/contract-moto.sh

ceph: ## the store contract and a shared cache against Ceph, in a root of Debian's packages
	tests/ceph/run.sh

systemd: ## the package in a container with systemd; FLAGS="--only WORD", DEB=FILE for a package that there is
	cargo build --workspace --bins --examples --locked
	deb="$(DEB)"
	if [ -z "$$deb" ]; then
	    rm -rf target/systemd/package
	    mkdir -p target/systemd/package
	    $(call package,dev,debug,target/systemd/package,--fast)
	    deb=$$(echo target/systemd/package/*.deb)
	fi
	python3 -B tests/systemd --package "$$deb" $(FLAGS)

deny: ## licences, sources and banned packages of the dependencies
	command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny@$(CARGO_DENY)
	cargo deny --locked check bans licenses sources

demo: ## the demo of the README
	cargo run --release --locked --example demo

bench: ## compare with other mounts and clients, see docs/performance.md; FLAGS="--quick"
	python3 benches/field $(FLAGS)

deb: ## the Debian package, in target/debian
	cargo build --release --workspace --bins --examples --locked
	$(call package,release,release,target/debian,)

libraries: ## what the release binary asks of the system
	ldd target/release/fasts3-mount
	objdump -T target/release/fasts3-mount | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n 1

# Of what has been built: profile, its folder, where to, flags. The pages come from the program itself.
define package
target/$(2)/examples/pages target/package
ln -sf ../bin/fasts3-mount target/package/mount.fasts3
packaging/changelog >target/package/changelog
command -v cargo-deb >/dev/null || cargo install --quiet --locked --debug cargo-deb@$(CARGO_DEB)
cargo deb --no-build --locked --profile $(1) --output $(3) $(4)
endef

FUZZ_SECONDS := 60
CARGO_DENY := 0.20.2
CARGO_DEB := 3.8.0
