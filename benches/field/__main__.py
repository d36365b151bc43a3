"""Benchmarks of fasts3-mount against the field: `python3 benches/field --help`."""

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import time

import bars
import hints
import imports
import models
import names
import prepare
import processes
import products
import report
import runner
import servers
import streams
import workloads

SUBJECTS = {"reads": workloads.reads, "streams": streams.streams, "models": models.models,
            "names": names.names, "imports": imports.imports,
            "hints": hints.hints}


class Progress:
    """On a terminal one line that is rewritten, and above it a line for each workload that is done;
    elsewhere a line for each result."""

    BAR = 20

    def __init__(self, network, total):
        self.network, self.total, self.done = network, total, 0
        self.start = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, workload, number, product):
        if not self.terminal:
            return
        elapsed = time.monotonic() - self.start
        full = self.BAR * self.done // self.total
        # The first workload says nothing about the time of the others.
        left = f"{clock(elapsed / self.done * (self.total - self.done))} left" if self.done else ""
        text = f"{self.network:5}{'█' * full}{'░' * (self.BAR - full)} {self.done}/{self.total}  "
        text += f"{clock(elapsed)}  {left}  {workload.phases[0].name}, round {number + 1}: {product}"
        self._rewrite(f"\x1b[36m{text[: shutil.get_terminal_size().columns - 1]}\x1b[0m")

    def tell(self, phase, product, sample):
        if not self.terminal:
            told = sample.error or f"{report.number(sample.value(phase.rate))} {report.unit(phase.rate)}"
            print(f"{self.network}: {phase.name}: {product}: {told}", file=sys.stderr, flush=True)

    def finished(self, phases):
        self.done += 1
        if not self.terminal:
            return
        for phase in phases:
            found = {name: report.number(p["value"]) if "value" in p else "failed"
                     for name, p in phase["products"].items()}
            ours = found.pop(products.OURS, "—")
            others = ", ".join(f"{name} {value}" for name, value in found.items())
            line = f"{phase['name']:32} \x1b[1m{ours:>7}\x1b[0m {report.unit(phase['rate']):9} {others}"
            self._rewrite(line + "\n")

    def end(self):
        if self.terminal:
            self._rewrite("")

    def _rewrite(self, text):
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def arguments():
    parser = argparse.ArgumentParser(prog="benches/field", description=__doc__)
    what = parser.add_argument_group("what is measured")
    what.add_argument("subject", nargs="*", metavar="SUBJECT",
                      help=f"{', '.join(SUBJECTS)} [default: all]")
    what.add_argument("--network", choices=[*servers.NETWORKS, "all"], action="append",
                      help="may be repeated [default: s3]")
    what.add_argument("--https", action="store_true",
                      help="over TLS; results are kept beside those without")
    what.add_argument("--only", action="append", metavar="WORKLOAD",
                      help="workloads with this in their name, from a word's beginning on; may be repeated")
    what.add_argument("--product", action="append", metavar="P",
                      help="products of this name; may be repeated [default: all there are]")
    what.add_argument("--ours", action="store_true",
                      help="only fasts3-mount and the local disk that it is held against")
    what.add_argument("--before", metavar="BINARY", type=os.path.abspath,
                      help="another build of fasts3-mount, measured in turns with this one; "
                           "a table of ratios follows")
    what.add_argument("--repeat", type=int, metavar="N",
                      help="rounds [default: 3; with --quick 2 on other networks than s3]")
    what.add_argument("--quick", action="store_true",
                      help="smaller objects, shorter loops, less time for slow peers")
    kept = parser.add_argument_group("what is kept")
    kept.add_argument("--merge", action="store_true",
                      help="add to the results of runs before this one; those of another binary of "
                           "ours are dropped")
    kept.add_argument("--resume", action="store_true",
                      help="as --merge, and leave out what was measured already")
    kept.add_argument("--minutes", type=float, metavar="M",
                      help="begin no workload after M minutes; --resume continues")
    kept.add_argument("--report", action="store_true",
                      help="measure nothing: show the results of the runs before")
    kept.add_argument("--update-docs", action="store_true",
                      help="write a page of benches/results and its picture in docs")
    args = parser.parse_args()
    if args.repeat is not None and args.repeat < 1:
        parser.error("--repeat must be at least 1")
    prepare.venv()  # of which some products are
    args.subject = args.subject or list(SUBJECTS)
    if "models" in args.subject and not args.report:
        prepare.venv("requirements-models")
    if unknown := set(args.subject) - set(SUBJECTS):
        parser.error(f"no such subject: {', '.join(unknown)}; there are: {', '.join(SUBJECTS)}")
    if args.before:
        products.compare_with(args.before)
    if unknown := set(args.product or []) - set(products.available()):
        parser.error(f"not here: {', '.join(unknown)}; here: {', '.join(products.available())}")
    if args.ours:
        args.product = [*(args.product or []), products.OURS, products.LOCAL]
    if args.before and args.product:
        args.product.append(products.BEFORE)
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
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    for subject in args.subject:
        results = before(args, subject)
        try:
            if not args.report:
                measure(args, results, until)
        finally:
            # Results from before an interruption count too, but not for the documents.
            complete = sys.exc_info()[0] is None
            write(results, args.update_docs and complete)
            for network in results["networks"]:
                print(f"\nNetwork {network['name']}\n\n{report.table(network, subject)}")
                if args.before:
                    print(f"\nThis build and the one before\n\n{report.builds_table(network)}")
            told = [bar for bar in results["bars"] if bar["measured"] != bars.NOT_MEASURED]
            print(f"\nThe targets of {subject}\n\n{report.bars_table(told)}")


def results_file(subject):
    return prepare.WORK / f"{subject}.json"


def before(args, subject):
    """The results to add to: those of the runs before if they are wanted, or none yet."""
    binary = hashlib.sha256((prepare.TARGET / "release" / "fasts3-mount").read_bytes())
    results = {"subject": subject, "machine": machine(), "cores": os.cpu_count(),
               "quick": args.quick, "binary": binary.hexdigest()[:16], "runs": [], "networks": []}
    if not (args.merge or args.resume or args.report):
        return results
    file = results_file(subject)
    if not file.exists():
        return results if not args.report else sys.exit(f"there are no results in {file}")
    found = json.loads(file.read_text())
    if args.report:
        return found
    for name in ("machine", "quick"):
        if found.get(name) != results[name]:
            sys.exit(f"the results before are of another {name}: {found.get(name)}, not "
                     f"{results[name]}; start without --merge or --resume")
    if found["binary"] != results["binary"]:
        # The others are what they were, and take most of the time.
        for phase in (phase for network in found["networks"] for phase in network["phases"]):
            phase["products"].pop(products.OURS, None)
        found["binary"] = results["binary"]
    return found


def measure(args, results, until):
    subject = SUBJECTS[results["subject"]](args.quick)
    every = subject.workloads
    chosen = {name: workload for name, workload in every.items()
              if not args.only or any(re.search(rf"\b{re.escape(part)}", phase.name)
                                      for part in args.only for phase in workload.phases)}
    asked = [name for name in products.available() if not args.product or name in args.product]
    seconds = subject.quick_seconds if args.quick else subject.seconds
    results["runs"].append({
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python3 benches/field", *sys.argv[1:]]),
    })
    networks = args.network or ["s3"]
    networks = servers.NETWORKS if "all" in networks else dict.fromkeys(networks)
    order = [phase.name for workload in every.values() for phase in workload.phases]
    for name in [name + servers.HTTPS * args.https for name in networks]:
        found = next((n for n in results["networks"] if n["name"] == name), None)
        if not found:
            found = {"name": name, "pieces": [], "phases": []}
            results["networks"].append(found)
        left = []
        for workload in chosen.values():
            taken = [name for name in asked if subject.takes(workload, name)
                     and not (args.resume and is_measured(found, workload, name))]
            if taken:
                left.append((workload, taken))
        # The bars are nearly all of the network s3.
        repeat = args.repeat or (2 if args.quick and name != "s3" else 3)
        limits = runner.Limits(repeat, *seconds)
        if left and time.monotonic() < until:
            run(found, subject, left, limits, until)
            found["phases"].sort(key=lambda phase: order.index(phase["name"]))
            write(results, False)


def is_measured(network, workload, name):
    """Whether a product went through all phases of a workload."""
    found = {phase["name"]: phase["products"] for phase in network["phases"]}
    return all(name in found.get(phase.name, {}) for phase in workload.phases_of(name))


def run(network, subject, chosen, limits, until):
    """Workloads, each with some products, on one network; what is found is added to `network`."""
    progress = Progress(network["name"], len(chosen))
    start, rates = time.monotonic(), {}
    (busy, total), own = processes.machine_cpu_seconds(), processes.own_cpu_seconds()
    server = servers.DevServer(network["name"], subject.holds)
    try:
        for path in subject.uploads:
            server.put(path)
        for key, folder in subject.trees.items():
            server.put_tree(key, folder)
        copied, trees = {}, {}
        for workload, taken in chosen:
            if products.JUICEFS in taken:
                copied |= subject.copied(workload)
                trees = subject.trees
        if copied or trees:
            products.write_copies(server, copied, trees)
        for workload, taken in chosen:
            if time.monotonic() > until:
                break
            found = runner.run(server, workload, taken, subject.local_folder, limits, rates, progress)
            budget = products.memory_budget_bytes(workload.options)
            progress.finished([add(network, phase, found[phase.name], budget)
                               for phase in workload.phases])
    finally:
        server.close()
        progress.end()
        (busy_now, total_now), own_now = processes.machine_cpu_seconds(), processes.own_cpu_seconds()
        others = max(0, (busy_now - busy) - (own_now - own))
        network["pieces"].append({"seconds": time.monotonic() - start,
                                  "others_busy": others / max(total_now - total, 1)})


def add(network, phase, samples, budget_bytes):
    """Puts a phase's summaries where the same products' older ones were."""
    into = next((p for p in network["phases"] if p["name"] == phase.name), None)
    if not into:
        into = {"name": phase.name, "rate": phase.rate, "products": {}}
        network["phases"].append(into)
    for name, found in samples.items():
        budget = budget_bytes if name == products.OURS else None
        into["products"][name] = runner.summary(found, phase.rate, budget)
    into["products"] = {name: into["products"][name] for name in products.available()
                        if name in into["products"]}
    return into


def write(results, update_docs):
    subject = results["subject"]
    results["bars"] = bars.judge(subject, results["networks"])
    results_file(subject).write_text(json.dumps(results, indent=1))
    (prepare.WORK / f"{subject}.svg").write_text(report.svg(results))
    if update_docs:
        picture = f"docs/performance-{subject}.svg"
        (prepare.ROOT / picture).write_text(report.svg(results))
        name, text = report.page(results, f"../../{picture}")
        (prepare.ROOT / "benches/results" / name).write_text(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
