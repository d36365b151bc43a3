"""The cache on a local disk: `python3 benches/disk --help`.

For each workload, in turns: cold without a cache, cold with one, a second mount that finds all of it
on the disk, and the same files on that disk itself. Before each the kernel's page cache is dropped,
so this needs root. Then other mounts that keep what they read on the disk, where they are installed:
cold, and a second mount. At the end two mounts of ours read the same at the same time.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "field"))

import prepare
import processes
import products
import servers

MIB, GIB = 1 << 20, 1 << 30
FAMILY = ("train/", 2000, 110_000)
SIZES = {"1GiB": GIB}
SMALL = {"program": "epoch", "key": "train", "threads": 16, "pieces": [], "seed": 1}
WORKLOADS = {
    "1 GiB read()": ("MB", {"program": "whole", "key": "1GiB", "size": GIB}),
    "128 KiB random, 16 threads":
        ("read", {"program": "scattered", "key": "1GiB", "size": GIB, "length": 128 << 10,
                  "threads": 16, "reads": 4000}),
    "2,000 × 110 KB": ("file", SMALL),
}
# Cold random reads leave holes: they would be another workload the second time.
FILL = {"128 KiB random, 16 threads": {"program": "whole", "key": "1GiB", "size": GIB}}
BUDGET = ["--memory-budget", "256MiB"]


def rclone(cache, *args):
    return [*products.rclone(*args), "--vfs-cache-mode", "full", "--cache-dir", cache]


def s3fs(cache, *args):
    *words, told = products.s3fs(*args)
    return [*words, f"{told},use_cache={cache}"]


def mountpoint_s3(cache, *args):
    return [*products.mountpoint_s3(*args), "--cache", cache]


PEERS = {"rclone": rclone, "s3fs": s3fs, "mount-s3": mountpoint_s3}


def drop_page_cache():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read(server, folder, args, seconds):
    """One run of reader.py: what it told."""
    args = args | {"how": "files", "folder": folder, "limit_seconds": seconds}
    command = [sys.executable, prepare.HERE / "reader.py", json.dumps(args)]
    reader = processes.start(command, env=server.environ(), stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, bufsize=0)
    if reader.stdout.readline() != b"ready\n":
        raise RuntimeError(f"the reader ended with {reader.wait()}")
    before = server.counts()
    output, _ = reader.communicate(b"go\n", 180)
    time.sleep(0.1)
    after = server.counts()
    result = json.loads(output)
    return result | {"gets": after["get"] - before["get"],
                     "fetched": after["body_bytes"] - before["body_bytes"]}


def rate(result, unit):
    return (result["bytes"] / 1e6 if unit == "MB" else result["items"]) / result["seconds"]


@contextlib.contextmanager
def mount(server, options):
    product = products.Mount(products.ours, server, [*BUDGET, *options])
    try:
        yield product
    finally:
        product.close()


def sample(server, name, local_folder, cache, seconds):
    """A workload once on everything: result and daemon's CPU seconds by column."""
    unit, args = WORKLOADS[name]
    found = {}

    def measured(column, product):
        drop_page_cache()
        used = processes.cpu_seconds(product.pid)
        found[column] = read(server, product.folder, args, seconds)
        found[column]["cpu"] = processes.cpu_seconds(product.pid) - used

    with_cache = ["--cache-dir", cache, "--cache-reserve", "0"]
    shutil.rmtree(cache, ignore_errors=True)
    with mount(server, []) as product:
        measured("cold, no cache", product)
    with mount(server, with_cache) as product:
        measured("cold, cache", product)
        if name in FILL:
            read(server, product.folder, FILL[name], seconds)
    with mount(server, with_cache) as product:
        measured("second mount", product)
    drop_page_cache()
    found["local disk"] = read(server, str(local_folder), args, seconds) | {"cpu": 0}
    for column, result in found.items():
        value = rate(result, unit)
        print(f"  {name}: {column}: {value:,.0f} {unit}/s, {result['gets']} GETs, daemon's CPU "
              f"{result['cpu']:.2f} s", file=sys.stderr, flush=True)
    return found


def sample_peer(server, peer, name, cache, seconds):
    """The same of another mount: cold, and a second one."""
    unit, args = WORKLOADS[name]
    found = {}
    shutil.rmtree(cache, ignore_errors=True)
    os.makedirs(cache)
    for column in ("cold, cache", "second mount"):
        product = products.Mount(functools.partial(PEERS[peer], cache), server, [])
        try:
            drop_page_cache()
            found[column] = read(server, product.folder, args, seconds)
            if column == "cold, cache" and name in FILL:
                read(server, product.folder, FILL[name], seconds)
            # What it writes in the background.
            time.sleep(2)
        finally:
            product.close()
        value, gets = rate(found[column], unit), found[column]["gets"]
        print(f"  {name}: {peer}: {column}: {value:,.0f} {unit}/s, {gets} GETs", file=sys.stderr, flush=True)
    return found


def peers_table(results):
    lines = ["| workload | mount | cold | second mount | its GETs |", "|---|---|---|---|---|"]
    for (name, peer), samples in results.items():
        unit = WORKLOADS[name][0]
        cold, second = (statistics.median(rate(found[column], unit) for found in samples)
                        for column in ("cold, cache", "second mount"))
        gets = max(found["second mount"]["gets"] for found in samples)
        lines.append(f"| {name}, {unit}/s | {peer} | {cold:,.0f} | {second:,.0f} | {gets} |")
    return "\n".join(lines)


def together(server, cache, seconds):
    """Two mounts of one directory read the same small files, each with 16 threads: bytes fetched for
    each byte of theirs."""
    shutil.rmtree(cache, ignore_errors=True)
    options = ["--cache-dir", cache, "--cache-reserve", "0"]
    with mount(server, options) as one, mount(server, options) as other:
        before = server.counts()["body_bytes"]
        readers = [
            processes.start([sys.executable, prepare.HERE / "reader.py", json.dumps(
                SMALL | {"how": "files", "folder": product.folder, "limit_seconds": seconds})],
                env=server.environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            for product in (one, other)
        ]
        for reader in readers:
            reader.stdout.readline()
        threads = [threading.Thread(target=reader.communicate, args=(b"go\n", 180))
                   for reader in readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (server.counts()["body_bytes"] - before) / (FAMILY[1] * FAMILY[2])


def table(results):
    columns = ["cold, no cache", "cold, cache", "second mount", "local disk"]
    lines = [f"| workload | {' | '.join(columns)} | cold ÷ cold | second ÷ local | its GETs |",
             "|---|---|---|---|---|---|---|---|"]
    for name, samples in results.items():
        unit = WORKLOADS[name][0]
        middle = {column: statistics.median(rate(found[column], unit) for found in samples)
                  for column in columns}
        cells = [f"{middle[column]:,.0f}" for column in columns]
        cold = middle["cold, cache"] / middle["cold, no cache"]
        second = middle["second mount"] / middle["local disk"]
        gets = max(found["second mount"]["gets"] for found in samples)
        lines.append(f"| {name}, {unit}/s | {' | '.join(cells)} | {cold:.2f} | {second:.2f} | {gets} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="benches/disk", description=__doc__)
    parser.add_argument("--network", choices=servers.NETWORKS, default="s3")
    parser.add_argument("--only", action="append", metavar="WORKLOAD", help="with this in its name")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds [default: 3]")
    args = parser.parse_args()
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    prefix, count, size = FAMILY
    digits = len(str(count - 1))
    family = {f"{prefix}{number:0{digits}}": size for number in range(count)}
    local_folder = prepare.local_files(SIZES | family)
    holds = ["--family", ":".join(map(str, FAMILY))]
    holds += [word for key, size in SIZES.items() for word in ("--object", f"{key}={size}")]
    cache = tempfile.mkdtemp(prefix="cache-", dir=prepare.WORK)
    server = servers.DevServer(args.network, holds)
    chosen = [name for name in WORKLOADS
              if not args.only or any(part in name for part in args.only)]
    results = {name: [] for name in chosen}
    others = {(name, peer): [] for name in chosen for peer in PEERS if prepare.program(peer)}
    try:
        for _ in range(args.repeat):
            for name in chosen:
                results[name].append(sample(server, name, local_folder, cache, 20))
        for _ in range(args.repeat):
            for name, peer in others:
                others[name, peer].append(sample_peer(server, peer, name, cache, 20))
        twice = together(server, cache, 60)
    finally:
        server.close()
        shutil.rmtree(cache, ignore_errors=True)
    print(f"{table(results)}\n\n{peers_table(others)}\n\nTwo mounts at once fetched {twice:.2f} times the bytes of the files.")


if __name__ == "__main__":
    main()
