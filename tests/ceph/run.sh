#!/usr/bin/env bash
# Runs the store contract, and mounts that share a cache, against Ceph: one node of Debian's packages
# with its disks in memory, in a root of its own on the loopback. Needs root; ends with its processes.
set -euo pipefail
cd "$(dirname "$0")/../.."
suite=bookworm folder=target/ceph
packages=ceph-mon,ceph-osd,ceph-mgr,radosgw
command -v mmdebstrap >/dev/null || {
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends mmdebstrap >/dev/null
}
mkdir -p "$folder"
if [ ! -e "$folder/$suite.tar" ]; then
    echo "== making a Debian $suite with $packages"
    mmdebstrap --quiet --variant=minbase --include="$packages" "$suite" "$folder/making.tar" </dev/null
    mv "$folder/making.tar" "$folder/$suite.tar"
fi
# What runs against it is built before it starts.
cargo test --locked --no-run --test store_contract --test mount

root=$(mktemp -d "$PWD/$folder/root-XXXXXX")
ceph=
end() {
    # With the first process of their namespace all end.
    [ -z "$ceph" ] || { kill -KILL "$ceph" && wait "$ceph"; } 2>/dev/null || true
    rm -rf --one-file-system "$root"
}
trap end EXIT
tar -xf "$folder/$suite.tar" -C "$root" --numeric-owner
cp tests/ceph/node.sh "$root/node.sh"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port=$(free_port)
start=$SECONDS
unshare --mount --pid --fork --kill-child chroot "$root" \
    /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C \
    bash /node.sh "$(free_port)" "$(free_port)" "$port" testing testing >"$folder/log" 2>&1 &
ceph=$!
until [ -e "$root/ready" ]; do
    kill -0 "$ceph" 2>/dev/null || { tail -n 40 "$folder/log"; exit 1; }
    [ $((SECONDS - start)) -lt 240 ] || { tail -n 40 "$folder/log"; echo "Ceph is not up after 240 s"; exit 1; }
    sleep 0.5
done
echo "== Ceph answers after $((SECONDS - start)) s"
export FASTS3_CONTRACT_ENDPOINT="http://127.0.0.1:$port"
cargo test --locked --test store_contract -- others_wrote
cargo test --locked --test mount -- ceph
