"""Benchmarks of fasts3-mount against the field: `python3 benches/field --help`."""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import sys
import time

import prepare
import processes
import products
import report
import runner
import servers
import workloads


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line for each result."""

    def __init__(self, network, total):
        self.network, self.total, self.done = network, total, 0
        self.start = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, workload, number, product):
        if self.terminal:
            elapsed = time.monotonic() - self.start
            left = elapsed / self.done * (self.total - self.done) if self.done else 0
            text = f"{self.network}  {self.done}/{self.total} workloads, about {left:.0f} s left: "
            text += f"{workload}, round {number + 1}, {product}"
            print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="",
                  file=sys.stderr, flush=True)

    def tell(self, phase, product, sample, workload):
        if not self.terminal:
            rate = next(p.rate for p in workload.phases if p.name == phase)
            told = sample.error or f"{report.number(sample.value(rate))} {report.unit(rate)}"
            print(f"{self.network}: {phase}: {product}: {told}", file=sys.stderr, flush=True)

    def finished(self):
        self.done += 1
        if self.terminal and self.done == self.total:
            print("\r\x1b[K", end="", file=sys.stderr)


def arguments():
    parser = argparse.ArgumentParser(prog="benches/field", description=__doc__)
    parser.add_argument("--network", choices=[*servers.NETWORKS, "all"], action="append",
                        help="may be repeated [default: s3]")
    parser.add_argument("--only", action="append", metavar="WORKLOAD",
                        help="workloads whose name contains this; may be repeated")
    parser.add_argument("--product", action="append", metavar="P",
                        help="products of this name; may be repeated [default: all there are]")
    parser.add_argument("--repeat", type=int, default=3, help="rounds [default: 3]")
    parser.add_argument("--quick", action="store_true",
                        help="smaller objects, shorter loops, slow peers only once")
    parser.add_argument("--update-docs", action="store_true",
                        help="write the results into docs/performance.md")
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error("--repeat must be at least 1")
    if unknown := set(args.product or []) - set(products.available()):
        parser.error(f"not here: {', '.join(unknown)}; here: {', '.join(products.available())}")
    return args


def machine():
    names = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo")
             if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    model = f"{len(names)} cores ({names[0]})" if names else f"{os.cpu_count()} cores"
    return f"{model}, {memory:.0f} GiB of memory, Linux {platform.release()}"


def main():
    args = arguments()
    # SIGTERM and a closed terminal clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    prepare.binaries()
    prepare.venv()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    sizes = workloads.objects(args.quick)
    local_folder = prepare.local_files(sizes, workloads.FAMILY)
    uploads = prepare.table_and_tensors(local_folder, args.quick)
    chosen = workloads.workloads(args.quick, *uploads)
    if args.only:
        chosen = {name: workload for name, workload in chosen.items()
                  if any(part in phase.name for part in args.only for phase in workload.phases)}
    names = [name for name in products.available() if not args.product or name in args.product]
    limits = runner.Limits(args.repeat, *((5, 40, 8) if args.quick else (20, 180, 90)))
    networks = args.network or ["s3"]
    results = {
        "date": datetime.date.today().isoformat(), "machine": machine(), "cores": os.cpu_count(),
        "command": " ".join(["python3 benches/field", *sys.argv[1:]]), "networks": [],
    }
    for network in servers.NETWORKS if "all" in networks else networks:
        found = {"name": network, "others_busy": 0, "phases": []}
        results["networks"].append(found)
        try:
            run(found, chosen, names, sizes, uploads, local_folder, limits)
        finally:
            # What was measured before an interruption counts too, but not for the documents.
            complete = sys.exc_info()[0] is None
            write(results, args.update_docs and complete)
            print(f"\nNetwork {network}\n\n{report.table(found)}")


def run(network, chosen, names, sizes, uploads, local_folder, limits):
    """All chosen workloads on one network; what is found is added to `network`."""
    progress = Progress(network["name"], len(chosen))
    (busy, total), own = processes.machine_cpu_seconds(), processes.own_cpu_seconds()
    huge = {workloads.HUGE["key"]: workloads.HUGE["size"]}
    server = servers.DevServer(network["name"], sizes | huge, workloads.FAMILY)
    try:
        for path in uploads:
            server.put(path)
        for workload in chosen.values():
            found = runner.run(server, workload, names, local_folder, limits, progress)
            progress.finished()
            for phase in workload.phases:
                summaries = {name: runner.summary(samples, phase.rate)
                             for name, samples in found[phase.name].items()}
                ordered = {name: summaries[name] for name in names if name in summaries}
                network["phases"].append({"name": phase.name, "rate": phase.rate, "products": ordered})
    finally:
        server.close()
        (busy_now, total_now), own_now = processes.machine_cpu_seconds(), processes.own_cpu_seconds()
        others = max(0, (busy_now - busy) - (own_now - own))
        network["others_busy"] = others / max(total_now - total, 1)


def write(results, update_docs):
    (prepare.WORK / "results.json").write_text(json.dumps(results, indent=1))
    (prepare.WORK / "results.svg").write_text(report.svg(results))
    if update_docs:
        docs = prepare.ROOT / "docs"
        (docs / "performance.svg").write_text(report.svg(results))
        page = docs / "performance.md"
        before = page.read_text() if page.exists() else "# Performance\n"
        page.write_text(report.update(before, report.section(results, "performance.svg")))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
