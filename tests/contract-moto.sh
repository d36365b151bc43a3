#!/usr/bin/env bash
# Runs the store contract against moto, an S3 server that others wrote: semantics, not speed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=target/moto
if [ ! -x "$venv/bin/moto_server" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'moto[server,s3]==5.1.*'
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$venv/bin/moto_server" -H 127.0.0.1 -p "$port" >target/moto.log 2>&1 &
moto=$!
trap 'kill "$moto" 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    kill -0 "$moto" 2>/dev/null || { cat target/moto.log; exit 1; }
    sleep 0.1
done
FASTS3_CONTRACT_ENDPOINT="http://127.0.0.1:$port" cargo test --locked --test store_contract -- others_wrote
