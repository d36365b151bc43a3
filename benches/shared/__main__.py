"""A cache that nodes share: `python3 benches/shared --help`.

The bucket is on a server that is as far as S3, the cache on one that is as near as flash; each mount
stands for a node. One mount without a cache, one with a cold cache, one that finds all of it there,
one whose bucket is on the near server, which no cache can be faster than; and eight that begin
together: seconds, and GETs at the source. All run on this machine's cores, the servers too, so ratios
of time say less than counts. Needs root: the page cache is dropped.
"""

import argparse
import datetime
import hashlib
import itertools
import json
import os
import re
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

MIB = 1 << 20
FAMILY = ("train/", 5000, 110_000)
MOUNTS = 8
BLOCK = 128 << 10
BUDGET = ["--memory-budget", "256MiB"]
ALONE, COLD, SECOND, NEAR = "alone, no cache", "cold cache", "second mount", "the bucket is near"
EIGHT, EIGHT_COLD, EIGHT_FULL = "8, no cache", "8, cold cache", "8, full cache"
CPU = ("source", "cache", "mounts")
# What is measured at once: mounts one after the other, with the cache that the first has filled.
PARTS = {
    "one": ((ALONE, 1, False), (COLD, 1, True), (SECOND, 1, True), (NEAR, 1, False)),
    "eight": ((EIGHT, MOUNTS, False), (EIGHT_COLD, MOUNTS, True), (EIGHT_FULL, MOUNTS, True)),
}
# The object, read no faster than this by all readers together: there is CPU time left for servers and
# mounts, as on machines of their own.
PACE = 200_000_000
OVERVIEW = prepare.ROOT / "docs/performance.md"
PAGE_END = "<!-- the end of what benches/shared writes -->"


def workloads(size):
    return {
        f"{size // MIB} MiB read()": {"program": "whole", "key": "large", "size": size},
        f"{FAMILY[1]:,} × {FAMILY[2] // 1000} KB":
            {"program": "epoch", "key": "train", "threads": 16, "pieces": [], "seed": 1},
        f"{size // MIB} MiB at {PACE // 1_000_000} MB/s":
            {"program": "paced", "key": "large", "pace": PACE},
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


def totals(mount):
    """What the daemon has counted of its shared cache."""
    status = [prepare.TARGET / "release" / "fasts3-mount", "status", mount.folder, "--json"]
    told = json.loads(subprocess.run(status, check=True, capture_output=True, timeout=20).stdout)
    return {name: count for name, count in told["totals"].items() if name.startswith("shared_")}


def read(nodes, args, seconds):
    """All mounts at once: the mean of their seconds, GETs and bytes at the source, what their daemons
    counted, and the CPU time of each."""
    source, mounts = nodes.source, nodes.mounts
    if "pace" in args:
        args = args | {"pace": args["pace"] / len(mounts)}
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    readers = [reader(source, mount.folder, args, seconds) for mount in mounts]
    before, cpu, machine = source.counts(), nodes.cpu_seconds(), processes.machine_cpu_seconds()
    for process in readers:
        process.stdin.write(b"go\n")
    results = [json.loads(process.communicate(timeout=400)[0]) for process in readers]
    busy, all_cores = (now - then for now, then in zip(processes.machine_cpu_seconds(), machine))
    # Some requests may have been sent for nobody.
    time.sleep(0.2)
    after = source.counts()
    found = {name: after[name] - before[name] for name in ("get", "head", "body_bytes")}
    found |= {name: now - then for name, now, then in zip(CPU, nodes.cpu_seconds(), cpu)}
    found["busy"] = busy / max(all_cores, 0.01)
    for mount in mounts:
        for name, count in totals(mount).items():
            found[name] = found.get(name, 0) + count
    return found | {name: statistics.mean(result[name] for result in results)
                    for name in ("seconds", "bytes")}


class Nodes:
    """Servers and mounts of one round."""

    def __init__(self, holds):
        self.log = prepare.WORK / "shared.log"
        self.log.write_text("")
        self.source = servers.DevServer("s3", [*holds, "--log", self.log])
        self.cache = servers.DevServer("flash", holds)
        self.mounts = []
        self.logged = 0

    def mount(self, count, *options, bucket=None):
        self.close_mounts()
        for _ in range(count):
            mount = products.Mount(products.ours, bucket or self.source, [*BUDGET, *options])
            self.mounts.append(mount)

    def asked_again(self):
        """GETs of these mounts for what had been asked for before, in whole or in part."""
        self.close_mounts()
        # The log of a connection is complete at its end.
        time.sleep(0.3)
        lines = self.log.read_text().splitlines()[1:]
        lines, self.logged = lines[self.logged:], len(lines)
        fields = sorted((line.split("\t") for line in lines), key=lambda fields: float(fields[2]))
        asked, again = {}, 0
        for _, kind, *_, span, key in fields:
            if kind != "get":
                continue
            first, last = map(int, span.removeprefix("bytes=").split("-")) if span else (0, 0)
            blocks = set(range(first // BLOCK, last // BLOCK + 1))
            again += not blocks.isdisjoint(asked.setdefault(key, set()))
            asked[key] |= blocks
        return again

    def shared(self, *options):
        return ["--shared-cache", f"s3://{servers.BUCKET}/cache", "--shared-cache-endpoint-url",
                self.cache.endpoint, "--shared-cache-trust", *options]

    def cpu_seconds(self):
        mounts = sum(processes.cpu_seconds(mount.pid) for mount in self.mounts)
        return self.source.cpu_seconds(), self.cache.cpu_seconds(), mounts

    def close_mounts(self):
        for mount in self.mounts:
            mount.close()
        self.mounts = []

    def close(self):
        self.close_mounts()
        self.source.close()
        self.cache.close()


def sample(holds, columns, args, seconds):
    """A workload in these ways, each time with new daemons; the cache is empty at first."""
    found = {}
    nodes = Nodes(holds)
    try:
        for column, count, with_cache in columns:
            bucket = nodes.cache if column == NEAR else None
            nodes.mount(count, *(nodes.shared() if with_cache else []), bucket=bucket)
            found[column] = read(nodes, args, seconds)
            found[column]["again"] = nodes.asked_again()
    finally:
        nodes.close()
    return found


def middles(parts):
    """Medians of what each column gave."""
    return {column: {name: statistics.median(found[column].get(name, 0) for found in samples)
                     for name in samples[0][column]}
            for samples in parts.values() for column in samples[0]}


def table(results):
    lines = ["| workload | mounts | seconds | GETs at the source | of those of one | again | bytes there "
             "| not stored | late | pauses | CPU s: source | cache | mounts | cores busy |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, parts in results.items():
        middle = middles(parts)
        for column, found in middle.items():
            late, pauses = found.get("shared_late", 0), found.get("shared_pauses", 0)
            lines.append(f"| {name} | {column} | {found['seconds']:.2f} | {found['get']:,.0f} | "
                         f"{found['get'] / middle[ALONE]['get']:.2f} | {found['again']:.0f} | "
                         f"{found['body_bytes'] / 1e6:,.0f} MB | "
                         f"{found.get('shared_dropped_bytes', 0) / 1e6:,.0f} MB | {late:.0f} | {pauses:.0f} | "
                         f"{' | '.join(f'{found[name]:.2f}' for name in CPU)} | {100 * found['busy']:.0f} % |")
    return "\n".join(lines)


def bars(results):
    lines = ["| workload | bar | found | |", "|---|---|---|---|"]
    for name, parts in results.items():
        middle = middles(parts)
        second = middle[ALONE]["seconds"] / middle[SECOND]["seconds"]
        cold = middle[ALONE]["seconds"] / middle[COLD]["seconds"]
        near = middle[NEAR]["seconds"] / middle[SECOND]["seconds"]
        gets = middle[EIGHT_COLD]["get"] / middle[ALONE]["get"]
        # Who reads no faster than the source gives it cannot read faster with a cache.
        wanted = 0.95 if name.endswith("MB/s") else 2
        found = [
            ("GETs of 8 mounts that begin together ≤ 1.2 × those of one", gets, gets <= 1.2),
            (f"a later mount ≥ {wanted} × the speed of the source alone", second, second >= wanted),
            ("with a cold cache ≥ 0.95 × the speed without", cold, cold >= 0.95),
            ("a later mount ÷ one whose bucket is as near as the cache", near, True),
        ]
        for bar, value, met in found:
            lines.append(f"| {name} | {bar} | {value:.2f} | {'' if met else '**missed**'} |")
    return "\n".join(lines)


def page(state):
    rounds = ", ".join(f"{len(samples)} of {name}, {part}" for name, parts in state["results"].items()
                       for part, samples in parts.items())
    return "\n".join([
        f"# A cache that nodes share, {state['date']}",
        "",
        f"Written by `benches/shared --update-docs`; {os.cpu_count()} cores, on which servers, mounts and",
        f"readers ran together. Medians; rounds: {rounds}. The bucket is as far as S3 (15 ms, 90 MB/s",
        "a connection), the cache as near as flash (1 ms, 1 GB/s); each mount has a budget of 256 MiB,",
        "and new daemons each time. Again: GETs for what had been asked for before. Late: times that the",
        "cache took longer than the source. Not stored: what was fetched and found no room on its way to",
        "the cache.",
        "",
        f"    {state['command']}",
        "",
        table(state["results"]),
        "",
        bars(state["results"]),
        "",
    ])


def write_docs(state):
    folder = prepare.ROOT / "benches/results"
    name = f"{state['date']}-shared.md"
    for old in folder.glob("*-shared.md"):
        old.unlink()
    (folder / name).write_text(page(state))
    text = re.sub(r"\d{4}-\d\d-\d\d-shared\.md", name, OVERVIEW.read_text())
    begin = text.index("| workload | bar", text.index("## The cache that nodes share"))
    end = text.index(PAGE_END)
    OVERVIEW.write_text(f"{text[:begin]}{bars(state['results'])}\n\n{text[end:]}")


def main():
    parser = argparse.ArgumentParser(prog="benches/shared", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of the large object")
    parser.add_argument("--only", metavar="WORKLOAD", help="with this in its name")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds [default: 3]")
    parser.add_argument("--minutes", type=float, metavar="M",
                        help="begin nothing after M minutes; --resume continues (one mount, or eight: "
                             "a minute or two with 2 GiB)")
    parser.add_argument("--resume", action="store_true", help="add to the rounds of runs before")
    parser.add_argument("--report", action="store_true", help="measure nothing: show those results")
    parser.add_argument("--update-docs", action="store_true",
                        help="write the page of benches/results and the table in docs/performance.md")
    args = parser.parse_args()
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    size = args.size * MIB
    binary = hashlib.sha256((prepare.TARGET / "release" / "fasts3-mount").read_bytes()).hexdigest()
    chosen = {name: words for name, words in workloads(size).items()
              if not args.only or args.only in name}
    file = prepare.WORK / "shared.json"
    state = {"binary": binary, "size": size, "results": {}}
    if (args.resume or args.report) and file.exists():
        state = json.loads(file.read_text())
        if not args.report and (state["binary"], state["size"]) != (binary, size):
            sys.exit("the results before are of another build or size; start without --resume")
    if not args.report:
        state |= {"date": datetime.date.today().isoformat(),
                  "command": f"python3 benches/shared --size {args.size} --repeat {args.repeat}"}
    holds = ["--family", ":".join(map(str, FAMILY)), "--object", f"large={size}"]
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    rounds = range(0 if args.report else args.repeat)
    for number, (name, words), part in itertools.product(rounds, chosen.items(), PARTS):
        samples = state["results"].setdefault(name, {}).setdefault(part, [])
        if len(samples) > number or time.monotonic() > until:
            continue
        samples.append(sample(holds, PARTS[part], words, 120))
        file.write_text(json.dumps(state, indent=1))
        for column, found in samples[-1].items():
            counts = ", ".join(f"{name.removeprefix('shared_')} {count:,}"
                               for name, count in found.items()
                               if name.startswith("shared_") and count)
            print(f"  {name}: {column}: {found['seconds']:.2f} s, {found['get']} GETs, "
                  f"{found['again']} again, {found['head']} HEADs; {counts}",
                  file=sys.stderr, flush=True)
    state["results"] = {name: parts for name, parts in state["results"].items()
                        if parts.keys() == PARTS.keys() and all(parts.values())}
    print(f"{table(state['results'])}\n\n{bars(state['results'])}")
    if args.update_docs:
        write_docs(state)


if __name__ == "__main__":
    main()
