"""The cache on a local disk: `python3 benches/disk --help`.

For each workload, in turns: cold without a cache, cold with one, a second mount that finds all of it
on the disk, and the same files on that disk itself; of the last two, which take some tenths of a
second, the median of three, hot of nine. Before each the kernel's page cache is dropped, so this needs
root. One workload is read hot instead: by the kernel alone (`--passthrough`), and the same file on that
disk. One is read cold only, by a program that computes: it leaves the cores time, which the others do
not. Then other mounts that keep what they read on the disk, where they are installed: cold, and a second
mount. At the end two mounts of ours read the same at the same time.

Names are looked up and listed before the time begins, everywhere: the disk has none, so they cost a
round trip or two to the store, which is a quarter of such a short time.
"""

import argparse
import contextlib
import datetime
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
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
COLUMNS = ["cold, no cache", "cold, cache", "second mount", "local disk"]
READ, RANDOM, SMALL, HOT, PACED = (
    "1 GiB read()", "128 KiB random, 16 threads", "2,000 × 110 KB", "1 GiB read(), hot",
    "1 GiB at 300 MB/s")
TOGETHER = "two mounts at once"
UNITS = {READ: "MB", RANDOM: "read", SMALL: "file", HOT: "MB", PACED: "MB"}
BUDGET = ["--memory-budget", "256MiB"]
# Of the second mount and the local disk, in each round. Hot they differ by nothing but the memory that
# each meets, which makes them differ by half: more of these, which are short.
TURNS, HOT_TURNS = 3, 9
# Of what a column is to reach of another.
BARS = [
    (READ, "second mount", "local disk", 0.8),
    (RANDOM, "second mount", "local disk", 0.8),
    (SMALL, "second mount", "local disk", 0.7),
    (READ, "cold, cache", "cold, no cache", 0.95),
    (SMALL, "cold, cache", "cold, no cache", 0.95),
    (HOT, "second mount", "local disk", 0.95),
    (PACED, "cold, cache", "cold, no cache", 0.95),
]
PAGE_END = "<!-- the end of what benches/disk writes -->"
RESULTS = prepare.WORK / "disk.json"


class Data:
    """What is read. Quick: a quarter of the large object, under the same name."""

    def __init__(self, quick):
        self.size, self.family = GIB // (4 if quick else 1), ("train/", 2000, 110_000)
        large = {"key": "1GiB", "size": self.size}
        self.programs = {
            READ: large | {"program": "whole"},
            HOT: large | {"program": "whole"},
            PACED: large | {"program": "paced", "pace": 300_000_000},
            RANDOM: large | {"program": "scattered", "length": 128 << 10, "threads": 16,
                             "reads": 4000},
            SMALL: {"program": "epoch", "key": "train", "threads": 16, "pieces": [], "seed": 1},
        }
        self.holds = ["--family", ":".join(map(str, self.family)), "--object", f"1GiB={self.size}"]

    def local_files(self):
        return prepare.local_files({"1GiB": self.size} | prepare.of_family(*self.family))


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


def read(server, folder, args, seconds=20):
    """One run of reader.py: what it told."""
    args = args | {"how": "files", "folder": str(folder), "limit_seconds": seconds}
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


def command(*words):
    """What a command of ours tells."""
    words = [prepare.TARGET / "release" / "fasts3-mount", *words]
    return subprocess.run(words, check=True, capture_output=True, timeout=120).stdout


def totals(product):
    return json.loads(command("status", product.folder, "--json"))["totals"]


def fill(product):
    """Puts all of the large object on the disk, however busy it is."""
    command("warm", "--to-disk", Path(product.folder) / "1GiB")


class Bench:
    def __init__(self, server, data, cache, local_folder):
        self.server, self.data, self.cache, self.local_folder = server, data, cache, local_folder
        self.options = ["--cache-dir", cache, "--cache-reserve", "0"]

    def clear(self):
        shutil.rmtree(self.cache, ignore_errors=True)

    def ours(self, name):
        """A workload once on everything: result, with the daemon's CPU seconds, by column."""
        self.clear()
        if name == HOT:
            with mount(self.server, [*self.options, "--passthrough", "on"]) as product:
                self.pass_through(product)
                (self.local_folder / "1GiB").read_bytes()
                return self.in_turns(lambda: self.hot(product), lambda: self.on_local_disk(name),
                                     HOT_TURNS)
        with mount(self.server, []) as product:
            found = {"cold, no cache": self.cold(product, name)}
        with mount(self.server, self.options) as product:
            found["cold, cache"] = self.cold(product, name)
            if name == RANDOM:
                # Cold random reads leave holes: they would be another workload.
                fill(product)
        if name == PACED:
            return found
        return found | self.in_turns(lambda: self.second(name),
                                     lambda: self.on_local_disk(name, cold=True))

    def in_turns(self, second, local, times=TURNS):
        """The median of each; of GETs and READs the most."""
        turns = {"second mount": [], "local disk": []}
        for _ in range(times):
            for column, one in zip(turns, (second, local), strict=True):
                turns[column].append(one())
        found = {}
        for column, results in turns.items():
            found[column] = sorted(results, key=lambda one: one["seconds"])[times // 2]
            for count in {"gets", "reads"} & set(found[column]):
                found[column][count] = max(one[count] for one in results)
        return found

    def cold(self, product, name):
        drop_page_cache()
        return self.sample(product, name)

    def second(self, name):
        with mount(self.server, self.options) as product:
            return self.cold(product, name)

    def hot(self, product):
        before = totals(product)["reads"]
        found = self.sample(product, HOT)
        return found | {"reads": totals(product)["reads"] - before}

    def on_local_disk(self, name, cold=False):
        if cold:
            drop_page_cache()
        return self.sample(products.Local(self.local_folder), name)

    def sample(self, product, name):
        # For the page cache, the program and the daemon. Without this whoever comes first pays for
        # the memory that the host must back: 2.6 CPU s/GB of a local file instead of 0.8.
        processes.warm_memory(3 * self.data.size)
        path = Path(product.folder) / self.data.programs[name]["key"]
        if path.is_dir():
            os.listdir(path)
        used = processes.cpu_seconds(product.pid) if product.pid else 0
        found = read(self.server, product.folder, self.data.programs[name])
        used = processes.cpu_seconds(product.pid) - used if product.pid else 0
        return found | {"cpu": used}

    def pass_through(self, product):
        """Has the kernel read the file by itself, and once to the end."""
        fill(product)
        path = Path(product.folder) / "1GiB"
        for _ in range(20):
            opened = totals(product)["opened_through"]
            with open(path, "rb") as file:
                is_through = totals(product)["opened_through"] > opened
                while file.read(MIB):
                    pass
            if is_through:
                return
            # Its end is told late.
            time.sleep(0.2)
        raise RuntimeError("the file is not passed through")

    def peer(self, peer, name):
        """The same of another mount: cold, and a second one."""
        found = {}
        self.clear()
        os.makedirs(self.cache)
        for column in ("cold, cache", "second mount"):
            product = products.Mount(functools.partial(PEERS[peer], self.cache), self.server, [])
            try:
                found[column] = self.cold(product, name)
                if column == "cold, cache" and name == RANDOM:
                    read(self.server, product.folder, self.data.programs[READ])
                # rclone writes down what it has 5 s after a file was closed.
                time.sleep(8)
            finally:
                product.close()
        return found

    def together(self):
        """Two mounts of one directory read the same small files, each with 16 threads: bytes fetched
        for each byte of theirs."""
        self.clear()
        with mount(self.server, self.options) as one, mount(self.server, self.options) as other:
            before = self.server.counts()["body_bytes"]
            args = self.data.programs[SMALL]
            threads = [threading.Thread(target=read, args=(self.server, product.folder, args, 60))
                       for product in (one, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            _, count, size = self.data.family
            return (self.server.counts()["body_bytes"] - before) / (count * size)


def middle(samples, column, unit):
    return statistics.median(rate(found[column], unit) for found in samples)


def ours_table(found):
    lines = [f"| workload | {' | '.join(COLUMNS)} | cold ÷ cold | second ÷ local | its GETs |",
             "|---|---|---|---|---|---|---|---|"]
    for name, unit in UNITS.items():
        if not (samples := found.get(name)):
            continue
        there = {column: middle(samples, column, unit) for column in COLUMNS if column in samples[0]}
        cells = [f"{there[column]:,.0f}" if column in there else "" for column in COLUMNS]
        cold = there.get("cold, cache", 0) / there.get("cold, no cache", 1)
        ratios = [f"{cold:.2f}" if cold else "", "", ""]
        if "second mount" in there:
            gets = max(found["second mount"]["gets"] for found in samples)
            ratios[1:] = [f"{there['second mount'] / there['local disk']:.2f}", f"{gets}"]
        lines.append(f"| {name}, {unit}/s | {' | '.join(cells + ratios)} |")
    return "\n".join(lines)


def cpu_table(found):
    """CPU time of the daemon and of the reader, by column."""
    lines = [f"| workload | {' | '.join(COLUMNS)} |", "|---|---|---|---|---|"]
    for name, unit in UNITS.items():
        if not (samples := found.get(name)):
            continue
        what, per = ("s/GB", lambda one: one["bytes"] / 1e9) if unit == "MB" else (
            f"µs/{unit}", lambda one: one["items"] / 1e6)
        cells = []
        for column in COLUMNS:
            if column not in samples[0]:
                cells.append("")
                continue
            daemon, reader = (
                statistics.median(one[column][key] / per(one[column]) for one in samples)
                for key in ("cpu", "cpu_seconds"))
            shown = [f"{value:,.2f}" if unit == "MB" else f"{value:,.0f}"
                     for value in (daemon, reader)]
            cells.append(shown[1] if column == "local disk" else " + ".join(shown))
        lines.append(f"| {name}, {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peers_table(found):
    lines = ["| workload | mount | cold | second mount | its GETs |", "|---|---|---|---|---|"]
    for name, unit in UNITS.items():
        for peer in ["fasts3-mount", *PEERS]:
            samples = found.get(name if peer == "fasts3-mount" else f"{name}: {peer}")
            if not samples or not {"cold, cache", "second mount"} <= samples[0].keys():
                continue
            cold, second = (middle(samples, column, unit)
                            for column in ("cold, cache", "second mount"))
            gets = max(found["second mount"]["gets"] for found in samples)
            lines.append(f"| {name}, {unit}/s | {peer} | {cold:,.0f} | {second:,.0f} | {gets} |")
    return "\n".join(lines)


def bars_table(found):
    lines = ["| target | wanted | measured | met |", "|---|---|---|---|"]

    def add(target, wanted, measured, met):
        lines.append(f"| {target} | {wanted} | {measured} | {'yes' if met else '**no**'} |")

    for name, column, other, least in BARS:
        if samples := found.get(name):
            value = middle(samples, column, UNITS[name]) / middle(samples, other, UNITS[name])
            add(f"{name}: {column} ÷ {other}", f"≥ {least}", f"{value:.2f}", value >= least)
    for name in (READ, RANDOM, SMALL):
        if samples := found.get(name):
            gets = max(one["second mount"]["gets"] for one in samples)
            add(f"{name}: GETs of the second mount", 0, gets, gets == 0)
    if samples := found.get(HOT):
        reads = max(one["second mount"]["reads"] for one in samples)
        add(f"{HOT}: READs that reach the daemon", 0, reads, reads == 0)
    if samples := found.get(TOGETHER):
        add(f"{TOGETHER}: fetched ÷ bytes", "≤ 1.1", f"{max(samples):.2f}", max(samples) <= 1.1)
    return "\n".join(lines)


def machine():
    names = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo")
             if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    model = f"{len(names)} cores ({names[0]})" if names else f"{os.cpu_count()} cores"
    return f"{model}, {memory:.0f} GiB of memory, Linux {platform.release()}"


def page(results):
    found, runs = results["samples"], results["runs"]
    rounds = {name: len(samples) for name, samples in found.items()}
    quick = " Quick: a quarter of the large object." if results["quick"] else ""
    busy = results["others_busy"]
    commands = "\n".join(f"    {run['command']}" for run in runs)
    return f"""# The cache on a local disk, {runs[-1]['date']}

Written by `benches/disk --update-docs`. Network `{results['network']}`, budget 256 MiB, the page cache
dropped before each column (but for the hot one), names known, medians of \
{min(rounds.values())} to {max(rounds.values())} rounds in turns.{quick}
Server, daemon and reader share {results['machine']}.
Other programs used {100 * busy:.0f} % of its cores meanwhile.

{commands}

## Targets

{bars_table(found)}

## Rates

{ours_table(found)}

The hot row is a file that the kernel reads by itself, and one of that disk, both in the page cache.

## CPU time

Of the daemon + of the program that reads; for the local disk of the program alone.

{cpu_table(found)}

## Other mounts

{peers_table(found)}
"""


def write_docs(results):
    folder = prepare.ROOT / "benches/results"
    name = f"{results['runs'][-1]['date']}-disk.md"
    for old in folder.glob("*-disk.md"):
        old.unlink()
    (folder / name).write_text(page(results))
    overview = prepare.ROOT / "docs/performance.md"
    text = re.sub(r"\d{4}-\d\d-\d\d-disk\.md", name, overview.read_text())
    begin = text.index("| target | wanted", text.index("## The cache on a local disk"))
    end = text.index(PAGE_END)
    overview.write_text(f"{text[:begin]}{bars_table(results['samples'])}\n\n{text[end:]}")


def before(args):
    """The results to add to: none, or with --resume or --report those of the runs before."""
    binary = hashlib.sha256((prepare.TARGET / "release" / "fasts3-mount").read_bytes())
    results = {"machine": machine(), "network": args.network, "quick": args.quick,
               "binary": binary.hexdigest()[:16], "runs": [], "samples": {}, "others_busy": 0.0}
    if not (args.resume or args.report):
        return results
    if not RESULTS.exists():
        return results if args.resume else sys.exit(f"there are no results in {RESULTS}")
    found = json.loads(RESULTS.read_text())
    if args.report:
        return found
    for name in ("machine", "network", "quick", "binary"):
        if found[name] != results[name]:
            sys.exit(f"the results before are of another {name}; start without --resume")
    return found


def measure(args, results, until):
    data = Data(args.quick)
    local_folder = data.local_files()
    cache = tempfile.mkdtemp(prefix="cache-", dir=prepare.WORK)
    server = servers.DevServer(args.network, data.holds)
    bench = Bench(server, data, cache, local_folder)
    tasks = {name: functools.partial(bench.ours, name) for name in UNITS}
    tasks |= {f"{name}: {peer}": functools.partial(bench.peer, peer, name)
              for name in (READ, RANDOM, SMALL) for peer in PEERS if prepare.program(peer)}
    tasks[TOGETHER] = bench.together
    tasks = {name: task for name, task in tasks.items()
             if not args.only or any(part in name for part in args.only)}
    try:
        for number in range(args.repeat):
            for name, task in tasks.items():
                samples = results["samples"].setdefault(name, [])
                if len(samples) > number:
                    continue
                if time.monotonic() > until:
                    return False
                tell(name, number, samples, task)
                RESULTS.write_text(json.dumps(results, indent=1))
        return True
    finally:
        server.close()
        shutil.rmtree(cache, ignore_errors=True)


def tell(name, number, samples, task):
    found = task()
    samples.append(found)
    unit = UNITS.get(name.partition(":")[0])
    told = f"{found:.2f} times the bytes" if unit is None else ", ".join(
        f"{column} {rate(one, unit):,.0f} {unit}/s ({one['gets']} GETs)"
        for column, one in found.items())
    print(f"  round {number + 1}: {name}: {told}", file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="benches/disk", description=__doc__)
    parser.add_argument("--network", choices=servers.NETWORKS, default="s3")
    parser.add_argument("--only", action="append", metavar="WORKLOAD", help="with this in its name")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds [default: 3]")
    parser.add_argument("--quick", action="store_true", help="a quarter of each workload")
    parser.add_argument("--resume", action="store_true",
                        help="add to the results of the runs before, and leave out what they have")
    parser.add_argument("--minutes", type=float, metavar="M",
                        help="begin nothing after M minutes; --resume continues")
    parser.add_argument("--report", action="store_true", help="measure nothing: show those results")
    parser.add_argument("--update-docs", action="store_true",
                        help="write the page of benches/results and the table in docs/performance.md")
    return parser.parse_args()


def main():
    args = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    prepare.venv()  # of which rclone is
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    results, is_complete = before(args), True
    if not args.report:
        results["runs"].append({
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python3 benches/disk", *sys.argv[1:]]),
        })
        (busy, total), own = processes.machine_cpu_seconds(), processes.own_cpu_seconds()
        is_complete = measure(args, results, until)
        (busy_now, total_now), own_now = processes.machine_cpu_seconds(), processes.own_cpu_seconds()
        others = max(0, busy_now - busy - (own_now - own)) / max(total_now - total, 1)
        results["others_busy"] = max(results["others_busy"], others)
        RESULTS.write_text(json.dumps(results, indent=1))
    results["samples"] = {name: samples for name, samples in results["samples"].items() if samples}
    print(page(results) if results["samples"] else "nothing was measured")
    if not is_complete:
        print("not all was measured: --resume continues", file=sys.stderr)
        sys.exit(3)
    if args.update_docs:
        write_docs(results)


if __name__ == "__main__":
    main()
