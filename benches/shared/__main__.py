"""A cache that nodes share: `python3 benches/shared --help`.

The bucket is on a server that is as far as S3, the cache on one that is as near as flash; each mount
stands for a node. One mount without a cache, one with a cold cache, one that finds all of it there,
and eight that begin together: seconds, and GETs at the source. All run on this machine's cores, the
servers too, so ratios of time say less than counts. Needs root: the page cache is dropped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "field"))

import prepare
import processes
import products
import servers

MIB, GIB = 1 << 20, 1 << 30
FAMILY = ("train/", 5000, 110_000)
MOUNTS = 8
BUDGET = ["--memory-budget", "256MiB"]


def workloads(size):
    return {
        f"{size // MIB} MiB read()": {"program": "whole", "key": "large", "size": size},
        "5,000 × 110 KB": {"program": "epoch", "key": "train", "threads": 16, "pieces": [], "seed": 1},
    }


def reader(server, folder, args, seconds):
    """Ready to begin."""
    args = args | {"how": "files", "folder": folder, "limit_seconds": seconds}
    command = [sys.executable, prepare.HERE / "reader.py", json.dumps(args)]
    process = processes.start(command, env=server.environ(), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, bufsize=0)
    if process.stdout.readline() != b"ready\n":
        raise RuntimeError(f"the reader ended with {process.wait()}")
    return process


def read(source, mounts, args, seconds):
    """All mounts at once: the mean of their seconds, and GETs and bytes at the source."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    readers = [reader(source, mount.folder, args, seconds) for mount in mounts]
    before = source.counts()
    for process in readers:
        process.stdin.write(b"go\n")
    results = [json.loads(process.communicate(timeout=600)[0]) for process in readers]
    time.sleep(0.2)
    after = source.counts()
    taken = {name: after[name] - before[name] for name in ("get", "head", "body_bytes")}
    return taken | {"seconds": statistics.mean(result["seconds"] for result in results),
                    "bytes": statistics.mean(result["bytes"] for result in results)}


class Nodes:
    """Servers and mounts of one round."""

    def __init__(self, holds):
        self.source = servers.DevServer("s3", holds)
        self.cache = servers.DevServer("flash", [])
        self.mounts = []

    def mount(self, count, *options):
        self.close_mounts()
        self.mounts = [products.Mount(products.ours, self.source, [*BUDGET, *options])
                       for _ in range(count)]
        return self.mounts

    def shared(self, *options):
        return ["--shared-cache", f"s3://{servers.BUCKET}/cache", "--shared-cache-endpoint-url",
                self.cache.endpoint, *options]

    def close_mounts(self):
        for mount in self.mounts:
            mount.close()
        self.mounts = []

    def close(self):
        self.close_mounts()
        self.source.close()
        self.cache.close()


def sample(holds, args, seconds):
    """A workload once each way."""
    found = {}
    nodes = Nodes(holds)
    try:
        found["alone, no cache"] = read(nodes.source, nodes.mount(1), args, seconds)
        found["cold cache"] = read(nodes.source, nodes.mount(1, *nodes.shared()), args, seconds)
        trusting = nodes.shared("--shared-cache-trust")
        found["second mount"] = read(nodes.source, nodes.mount(1, *trusting), args, seconds)
    finally:
        nodes.close()
    nodes = Nodes(holds)
    try:
        found["8, no cache"] = read(nodes.source, nodes.mount(MOUNTS), args, seconds)
        trusting = nodes.shared("--shared-cache-trust")
        found["8, cold cache"] = read(nodes.source, nodes.mount(MOUNTS, *trusting), args, seconds)
        found["8, full cache"] = read(nodes.source, nodes.mount(MOUNTS, *trusting), args, seconds)
    finally:
        nodes.close()
    return found


def table(results):
    lines = ["| workload | mounts | seconds | GETs at the source | of those of one | bytes there |",
             "|---|---|---|---|---|---|"]
    for name, samples in results.items():
        for column in samples[0]:
            middle = {key: statistics.median(found[column][key] for found in samples)
                      for key in ("seconds", "get", "body_bytes")}
            once = statistics.median(found["alone, no cache"]["get"] for found in samples)
            lines.append(f"| {name} | {column} | {middle['seconds']:.2f} | {middle['get']:,.0f} | "
                         f"{middle['get'] / once:.2f} | {middle['body_bytes'] / 1e6:,.0f} MB |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="benches/shared", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of the large object")
    parser.add_argument("--only", metavar="WORKLOAD", help="with this in its name")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds [default: 3]")
    args = parser.parse_args()
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    size = args.size * MIB
    holds = ["--family", ":".join(map(str, FAMILY)), "--object", f"large={size}"]
    chosen = {name: words for name, words in workloads(size).items()
              if not args.only or args.only in name}
    results = {name: [] for name in chosen}
    for _ in range(args.repeat):
        for name, words in chosen.items():
            found = sample(holds, words, 120)
            results[name].append(found)
            for column, result in found.items():
                print(f"  {name}: {column}: {result['seconds']:.2f} s, {result['get']} GETs, "
                      f"{result['head']} HEADs", file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
