"""Runs workloads with products, and measures."""

import json
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass

import prepare
import processes
import products


@dataclass
class Sample:
    """One phase of a workload with one product; `error` says why there are no numbers."""

    seconds: float = 0
    bytes: int = 0
    items: int = 0
    cut: bool = False
    requests: int = 0
    fetched_bytes: int = 0
    cpu_seconds: float = 0
    reader_cpu_seconds: float = 0
    server_cpu_seconds: float = 0
    peak_rss_bytes: int = 0
    error: str = ""

    def value(self, rate):
        """In milliseconds, megabytes a second or items a second."""
        if rate == "ms":
            return self.seconds * 1e3
        return (self.bytes / 1e6 if rate == "MB" else self.items) / self.seconds


@dataclass
class Limits:
    repeat: int
    loop_seconds: float  # a workload that counts what it gets done stops here
    hang_seconds: float  # a product that is not done by then is killed
    slow_seconds: float  # one that took so long is not measured again


def measure(server, product, phase, limits):
    """One phase on an open product. TimeoutExpired if it hangs."""
    args = phase.args | {"program": phase.program, "how": product.how, "folder": product.folder,
                         "limit_seconds": limits.loop_seconds}
    before, server_cpu = server.counts(), server.cpu_seconds()
    cpu = processes.cpu_seconds(product.pid) if product.pid else 0
    reader = processes.start(
        [prepare.PYTHON, prepare.HERE / "reader.py", json.dumps(args)],
        env=server.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        output, errors = reader.communicate(timeout=limits.hang_seconds)
    except BaseException:
        product.close(by_force=True)
        processes.end(reader, seconds=2)
        raise
    if reader.returncode:
        words = errors.decode(errors="replace").strip().splitlines() or [str(reader.returncode)]
        return Sample(error=words[-1][:200])
    time.sleep(0.1)  # what is under way was asked for by this phase
    result = json.loads(output)
    after = server.counts()
    spent = {name: after[name] - before[name] for name in after}
    reader_cpu, reader_rss = result.pop("cpu_seconds"), result.pop("peak_rss_bytes")
    return Sample(
        **result,
        requests=spent["list"] + spent["head"] + spent["get"] + spent["other"],
        fetched_bytes=spent["body_bytes"],
        # A client's work is done in the reader itself.
        cpu_seconds=processes.cpu_seconds(product.pid) - cpu if product.pid else reader_cpu,
        reader_cpu_seconds=reader_cpu,
        server_cpu_seconds=server.cpu_seconds() - server_cpu,
        peak_rss_bytes=processes.peak_rss_bytes(product.pid) if product.pid else reader_rss,
    )


def sample(server, name, workload, local_folder, limits):
    """A product through all phases of a workload: samples by phase."""
    samples = {}
    try:
        product = products.open_product(name, server, local_folder, workload.options)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return {phase.name: Sample(error=f"did not start: {error}") for phase in workload.phases}
    try:
        for phase in workload.phases:
            if name == products.LOCAL:
                measure(server, product, phase, limits)  # brings the files into the page cache
            samples[phase.name] = found = measure(server, product, phase, limits)
            # What follows a phase means nothing if that was not complete.
            if found.error or found.cut:
                break
    except subprocess.TimeoutExpired:
        samples[phase.name] = Sample(error=f"hung: killed after {limits.hang_seconds:g} s")
    finally:
        product.close()
    return samples


def run(server, workload, names, local_folder, limits, progress):
    """A workload with all products in turn, several rounds: lists of samples by phase, product."""
    found = {phase.name: {} for phase in workload.phases}
    names = [name for name in names if workload.takes(name)]
    slow = set()
    for number in range(limits.repeat):
        # In every round another one begins.
        for name in names[number % len(names):] + names[: number % len(names)]:
            if name in slow:
                continue
            progress.show(workload.phases[0].name, number, name)
            start = time.monotonic()
            samples = sample(server, name, workload, local_folder, limits)
            for phase, one in samples.items():
                found[phase].setdefault(name, []).append(one)
                progress.tell(phase, name, one, workload)
            if name != products.OURS and time.monotonic() - start > limits.slow_seconds:
                slow.add(name)
    return found


def summary(samples, rate):
    """The sample with the median value, as a dict with that value and the spread."""
    good = sorted((s for s in samples if not s.error), key=lambda s: s.value(rate))
    if not good:
        return {"error": samples[-1].error, "samples": [asdict(s) for s in samples]}
    values = [s.value(rate) for s in good]
    middle = good[(len(good) - 1) // 2]
    return {
        "value": statistics.median(values), "least": values[0], "most": values[-1],
        "runs": len(good), "failed": len(samples) - len(good),
        "requests": middle.requests, "items": middle.items, "cut": middle.cut,
        "fetched_per_read": middle.fetched_bytes / middle.bytes if middle.bytes else None,
        "cpu_s_per_gb": middle.cpu_seconds / (middle.bytes / 1e9) if middle.bytes else None,
        "reader_cpu_s_per_gb": middle.reader_cpu_seconds / (middle.bytes / 1e9),
        "server_cpu_s_per_gb": middle.server_cpu_seconds / (middle.bytes / 1e9),
        "peak_rss_bytes": max(s.peak_rss_bytes for s in good),
        "samples": [asdict(s) for s in samples],
    }
