"""Runs workloads with products, and measures."""

import json
import select
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass

import prepare
import processes
import products

MIB = 1 << 20
# Phases whose result is a time, and the parts of a second that it is shown in.
TIMES = {"s": 1, "ms": 1e3}


@dataclass
class Sample:
    """One phase of a workload with one product; `error` says why there are no numbers, `over` that
    it was ended after `seconds`, before it was done."""

    seconds: float = 0
    bytes: int = 0
    block_bytes: int = 0  # of random reads, the blocks that they touch; else as `bytes`
    items: int = 0
    cut: bool = False
    over: bool = False
    waits: int = 0  # of the reader's reads, those that took more than 5 ms
    waited_seconds: float = 0
    requests: int = 0
    lists: int = 0
    heads: int = 0
    gets: int = 0
    fetched_bytes: int = 0
    cpu_seconds: float = 0
    reader_cpu_seconds: float = 0
    server_cpu_seconds: float = 0
    peak_rss_bytes: int = 0
    error: str = ""

    def value(self, rate):
        """In seconds, milliseconds, megabytes a second or items a second."""
        if rate in TIMES:
            return self.seconds * TIMES[rate]
        return (self.bytes / 1e6 if rate == "MB" else self.items) / self.seconds


@dataclass
class Limits:
    repeat: int
    loop_seconds: float  # a workload that counts what it gets done stops here
    hang_seconds: float  # a product that is not done by then is killed
    slow_seconds: float  # a sample that took longer is not measured again

    def too_long(self, phase, rates, name):
        """The reason to leave a large object out, after a smaller one was read at this rate."""
        seconds = phase.args.get("size", 0) / 1e6 / rates.get(name, float("inf"))
        if phase.program == "whole" and seconds > self.hang_seconds:
            return f"left out: {seconds:.0f} s at its {rates[name]:.0f} MB/s with less"
        return ""


def measure(server, product, phase, limits):
    """One phase on an open product. TimeoutExpired if it hangs."""
    args = phase.args | {"program": phase.program, "how": product.how, "folder": product.folder,
                         "tool": product.tool, "limit_seconds": limits.loop_seconds}
    reader = processes.start(
        [prepare.PYTHON, prepare.HERE / "reader.py", json.dumps(args)], env=server.environ(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )
    try:
        ready, _, _ = select.select([reader.stdout], [], [], limits.hang_seconds)
        if not ready:
            raise subprocess.TimeoutExpired(reader.args, limits.hang_seconds)
        started = reader.stdout.readline() == b"ready\n"
        processes.warm_memory(phase.memory_bytes)
        before, server_cpu = server.counts(), server.cpu_seconds()
        cpu = processes.cpu_seconds(product.pid) if product.pid else 0
        output, errors = reader.communicate(b"go\n" if started else None, limits.hang_seconds)
    except BaseException:
        product.close(by_force=True)
        processes.end(reader, seconds=2)
        raise
    if reader.returncode:
        words = errors.decode(errors="replace").strip().splitlines() or [str(reader.returncode)]
        return Sample(error=words[-1][:200])
    time.sleep(0.1)  # what is under way was asked for by this phase
    result = json.loads(output)
    if not result["items"]:
        return Sample(error=f"read nothing in {limits.loop_seconds:g} s")
    if (wanted := phase.args.get("count", result["items"])) != result["items"]:
        return Sample(error=f"found {result['items']:,} of {wanted:,}")
    after = server.counts()
    spent = {name: after[name] - before[name] for name in after}
    reader_cpu, reader_rss = result.pop("cpu_seconds"), result.pop("peak_rss_bytes")
    return Sample(
        **result,
        requests=spent["list"] + spent["head"] + spent["get"] + spent["other"],
        gets=spent["get"], lists=spent["list"], heads=spent["head"],
        fetched_bytes=spent["body_bytes"],
        # A client's work is done in the reader itself.
        cpu_seconds=processes.cpu_seconds(product.pid) - cpu if product.pid else 0,
        reader_cpu_seconds=reader_cpu,
        server_cpu_seconds=server.cpu_seconds() - server_cpu,
        peak_rss_bytes=processes.peak_rss_bytes(product.pid) if product.pid else reader_rss,
    )


def sample(server, name, workload, local_folder, limits):
    """A product through all phases of a workload: samples by phase."""
    samples, phases = {}, workload.phases_of(name)
    try:
        product = products.open_product(name, server, local_folder, workload)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return {phase.name: Sample(error=f"did not start: {error}") for phase in phases}
    try:
        for phase in phases:
            if name == products.LOCAL:
                measure(server, product, phase, limits)  # brings the files into the page cache
            samples[phase.name] = found = measure(server, product, phase, limits)
            # The phases after an incomplete one mean nothing.
            if found.error or found.cut:
                why = found.error and "the phase before failed" or "the phase before was cut"
                for later in phases[len(samples):]:
                    samples[later.name] = Sample(error=f"left out: {why}")
                break
    except subprocess.TimeoutExpired:
        told = product.last_words
        why = f"hung: killed after {limits.hang_seconds:g} s" + (told and f"; its log: {told}")
        slow = phases[len(samples)]
        if slow.rate in TIMES:  # that it takes longer is an answer
            samples[slow.name] = Sample(seconds=limits.hang_seconds, over=True)
            why = "left out: the phase before took too long"
        for phase in phases[len(samples):]:
            samples[phase.name] = Sample(error=why)
            why = "left out: the phase before hung"
    finally:
        product.close()
    return samples


def run(server, workload, names, local_folder, limits, rates, progress):
    """A workload with all products in turn, several rounds: lists of samples by phase, product.

    `rates` are the MB/s at which each product read whole objects before, and are kept up to date.
    """
    found = {phase.name: {} for phase in workload.phases}
    names = [name for name in names if workload.takes(name)]
    slow = set()
    for number in range(min(limits.repeat, workload.rounds or limits.repeat)):
        # In every round another one begins.
        for name in names[number % len(names):] + names[: number % len(names)]:
            if name in slow:
                continue
            progress.show(workload, number, name)
            start = time.monotonic()
            phases = workload.phases_of(name)
            if why := limits.too_long(phases[0], rates, name):
                samples = {phase.name: Sample(error=why) for phase in phases}
            else:
                samples = sample(server, name, workload, local_folder, limits)
            for phase in phases:
                one = samples[phase.name]
                found[phase.name].setdefault(name, []).append(one)
                progress.tell(phase, name, one)
                if phase.program == "whole" and not one.error:
                    rates.setdefault(name, one.value(phase.rate))
            read_for = sum(one.seconds for one in samples.values())
            failed = any(one.error for one in samples.values())
            took = time.monotonic() - start
            if name != products.OURS and (read_for > limits.slow_seconds or failed and took > 2):
                slow.add(name)
    return found


def summary(samples, rate, budget_bytes=None):
    """The sample with the median value, as a dict with that value and the spread. Of random reads,
    what is told per byte is per byte of the blocks that they touch; without bytes it is not told."""
    good = sorted((s for s in samples if not s.error), key=lambda s: s.value(rate))
    if not good:
        return {"error": samples[-1].error, "samples": [asdict(s) for s in samples]}
    values = [s.value(rate) for s in good]
    middle = good[(len(good) - 1) // 2]
    peak = max(s.peak_rss_bytes for s in good)
    found = {
        "value": statistics.median(values), "least": values[0], "most": values[-1],
        "runs": len(good), "failed": len(samples) - len(good),
        "requests": middle.requests, "items": middle.items, "cut": middle.cut, "over": middle.over,
        "lists": middle.lists, "heads": middle.heads, "gets": middle.gets, "waits": middle.waits,
        "fetched_mb": middle.fetched_bytes / 1e6,
        "peak_rss_mib": peak / MIB,
        "samples": [asdict(s) for s in samples],
    }
    spent = {"cpu": middle.cpu_seconds, "reader_cpu": middle.reader_cpu_seconds,
             "server_cpu": middle.server_cpu_seconds}
    if middle.items:
        found["gets_per_item"] = middle.gets / middle.items
        found["items_per_s"] = middle.items / middle.seconds
        found |= {f"{who}_us_per_item": 1e6 * used / middle.items for who, used in spent.items()}
    if middle.block_bytes:
        found["fetched_per_read"] = middle.fetched_bytes / middle.block_bytes
        found |= {f"{who}_s_per_gb": 1e9 * used / middle.block_bytes for who, used in spent.items()}
    if budget_bytes is not None:
        found["rss_over_budget_mib"] = (peak - budget_bytes) / MIB
    return found
