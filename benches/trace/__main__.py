"""Where a reader of a mount waits, and for what: `python3 benches/trace`.

Mounts a bucket of devserver, reads a file by readinto (with --streams several at once), and lays the
time of each read beside the daemon's GETs: when each was asked for, its first and its last byte, as
the server wrote them. Prints

- the rate, the time to the first MiB and to the first 64 MiB, the daemon's CPU time;
- the latency of the reads, and the number, size and rate of the GETs;
- what happened in each slice of time: bytes read and arrived, GETs in flight, bytes ahead of the
  reader, the time that it waited;
- each read that took longer than 5 ms: which GET brought its last bytes, when that was asked for and
  when they were there (even flow within a GET is assumed), and what that makes of the wait:
  "asked for only then", "no first byte yet", "on its way" on a connection that is slower than the
  reader, or "was there" and something else than the network took the time.

Times are milliseconds since the first read began. devserver writes down what its kernel took, which
is earlier than what the daemon has read by what socket buffers hold.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "field"))

import account  # noqa: E402
import prepare  # noqa: E402
import processes  # noqa: E402
import products  # noqa: E402
import servers  # noqa: E402
import workloads  # noqa: E402
from report import columns  # noqa: E402

MIB = 1 << 20
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def size(text):
    """Bytes of a size such as 512MiB."""
    return int(text[:-3]) * UNITS[text[-3:]]


def arguments():
    parser = argparse.ArgumentParser(prog="benches/trace", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=servers.NETWORKS, default="s3", help="[default: s3]")
    parser.add_argument("--size", type=size, default="1GiB", help="of an object [default: 1GiB]")
    parser.add_argument("--most", type=size, metavar="SIZE",
                        help="read no more than this of each object [default: all]")
    parser.add_argument("--piece", type=size, metavar="SIZE", default="1MiB",
                        help="bytes of a readinto [default: 1MiB]")
    parser.add_argument("--streams", type=int, metavar="N", default=1,
                        help="objects, each read by a process of its own [default: 1]")
    parser.add_argument("--binary", type=os.path.abspath,
                        help="another build of fasts3-mount [default: the release build here]")
    parser.add_argument("--slices", type=int, metavar="N", default=40,
                        help="of the time [default: 40]")
    parser.add_argument("--reads", action="store_true", help="print every read")
    parser.add_argument("--gets", action="store_true", help="print every GET")
    parser.add_argument("--raw", metavar="FILE", help="write reads and GETs to this file, as JSON")
    parser.add_argument("options", nargs="*", metavar="OPTION",
                        help="of fasts3-mount, behind `--`: -- --memory-budget 1GiB")
    return parser.parse_args()


def main():
    args = arguments()
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    keys = [f"object-{number}" for number in range(args.streams)]
    with tempfile.TemporaryDirectory(prefix="trace-", dir=prepare.WORK) as folder:
        log = Path(folder) / "log"
        reads, cpu, busy = traced(args, keys, log)
        begin, end = min(r.begin for r in reads), max(r.end for r in reads)
        found = account.gets(log, begin - 0.001)
    by_key = [[get for get in found if get.key == key] for key in keys]
    waits = account.waits(reads, by_key)
    print(summary(reads, found, waits, begin, end))
    print(f"daemon {1e9 * cpu / sum(read.size for read in reads):.2f} CPU s/GB; "
          f"the machine's cores were busy for {busy:.0%} of the time")
    print(f"\nIn slices\n\n{columns(slices(reads, found, begin, end, args.slices))}")
    if waits:
        print(f"\nReads of more than {1e3 * account.WAIT_SECONDS:g} ms\n")
        print(columns(wait_rows(waits, begin)))
    if args.reads:
        print(f"\nReads\n\n{columns(read_rows(reads, begin))}")
    if args.gets:
        print(f"\nGETs\n\n{columns(get_rows(found, begin))}")
    if args.raw:
        raw = {"reads": reads, "gets": found}
        Path(args.raw).write_text(json.dumps(raw, default=dataclasses.asdict, indent=1))


def traced(args, keys, log):
    """Every read of the readers, the CPU seconds of the daemon meanwhile, and the share of time in
    which the machine's cores were busy."""
    holds = [word for key in keys for word in ("--object", f"{key}={args.size}B")]
    server = servers.DevServer(args.network, [*holds, "--log", log])
    readers, product = [], None
    try:
        if args.binary:
            products.compare_with(args.binary)
        name = products.BEFORE if args.binary else products.OURS
        workload = workloads.Workload([], options=args.options)
        product = products.open_product(name, server, "", workload)
        script = [sys.executable, HERE / "reader.py"]
        for key in keys:
            words = [*script, Path(product.folder) / key, args.piece, args.most or args.size]
            readers.append(processes.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            if readers[-1].stdout.readline() != b"ready\n":
                raise RuntimeError("a reader did not begin")
        # The page cache, and the daemon: what is touched and not used goes back to the host meanwhile.
        processes.warm_memory((args.most or args.size) * args.streams + 512 * MIB)
        time.sleep(0.2)
        cpu, machine = processes.cpu_seconds(product.pid), processes.machine_cpu_seconds()
        for reader in readers:
            reader.stdin.write(b"go\n")
            reader.stdin.flush()
        told = [json.loads(reader.communicate()[0]) for reader in readers]
        cpu = processes.cpu_seconds(product.pid) - cpu
        busy, total = (now - then for now, then in zip(processes.machine_cpu_seconds(), machine))
    finally:
        for reader in readers:
            processes.end(reader, seconds=2)
        if product:
            product.close()
        # The last answer of each connection is logged when that is closed.
        server.close()
    reads = [account.Read(stream, *read) for stream, reads in enumerate(told) for read in reads]
    return reads, cpu, busy / max(total, 1e-9)


def summary(reads, found, waits, begin, end):
    total, seconds = sum(read.size for read in reads), end - begin

    def reached(size):
        return next((f"{1e3 * (read.end - begin):.0f} ms" for read in reads
                     if read.stream == 0 and read.offset + read.size >= size), "—")

    latencies = sorted(read.seconds for read in reads if read.size)
    bodies = [get.end - get.start for get in found]
    fetched, busy = sum(bodies), sum(get.last - get.asked for get in found)
    rates = sorted(get.sent / 1e6 / (get.last - get.first) for get in found
                   if get.first is not None and get.last > get.first)

    def quantiles(values, scale=1):
        at = [values[int(share * (len(values) - 1))] * scale for share in (0.5, 0.9, 0.99, 1)]
        return " / ".join(f"{value:.3g}" for value in at)

    lines = [
        f"{total / 1e6:,.0f} MB in {seconds:.3f} s: {total / 1e6 / seconds:,.0f} MB/s; "
        f"first MiB {reached(MIB)}, first 64 MiB {reached(64 * MIB)}",
        f"{len(latencies)} reads: ms in the median / 90 % / 99 % / most: {quantiles(latencies, 1e3)}; "
        f"{len(waits)} waits, {1e3 * sum(wait.read.seconds for wait in waits):.0f} ms",
    ]
    if found:
        lines.append(
            f"{len(found)} GETs of {min(bodies) / MIB:.3g} to {max(bodies) / MIB:.3g} MiB, "
            f"{fetched / total:.2f} of the bytes read; {busy / seconds:.1f} in flight on average; "
            f"MB/s of one in the median / 90 % / 99 % / least: {quantiles(rates[::-1])}")
    reasons = {}
    for wait in waits:
        reason = "on its way" if wait.why.startswith("on its way") else wait.why
        reasons.setdefault(reason, []).append(wait.read.seconds)
    lines += [f"  {1e3 * sum(took):.0f} ms in {len(took)}: {reason}" for reason, took in reasons.items()]
    return "\n".join(lines)


def slices(reads, found, begin, end, count):
    length = (end - begin) / count
    yield ["ms", "read MB/s", "arrived MB/s", "GETs in flight", "MiB ahead", "waited"]
    for piece in account.timeline(reads, found, begin, end, count):
        yield [f"{1e3 * (piece.begin - begin):.0f}", f"{piece.read / 1e6 / length:,.0f}",
               f"{piece.arrived / 1e6 / length:,.0f}", f"{piece.in_flight:.1f}",
               f"{piece.ahead / MIB:.1f}", f"{piece.waited / length:.0%}" if piece.waited else ""]


def wait_rows(waits, begin):
    def ms(time):
        return f"{1e3 * (time - begin):.1f}" if time < float("inf") else "—"

    yield ["at", "waited", "stream", "MiB", "its GET: MiB", "asked", "first byte", "there", "last byte",
           "why"]
    for wait in waits:
        read, get = wait.read, wait.get
        told = [f"{get.start / MIB:.2f}–{get.end / MIB:.2f}", ms(get.asked),
                ms(float("inf") if get.first is None else get.first), ms(wait.there), ms(get.last)
                ] if get else [""] * 5
        yield [ms(read.begin), f"{1e3 * read.seconds:.1f}", f"{read.stream}",
               f"{read.offset / MIB:.2f}", *told, wait.why]


def read_rows(reads, begin):
    yield ["at", "took", "stream", "MiB", "KiB"]
    for read in sorted(reads, key=lambda read: read.begin):
        yield [f"{1e3 * (read.begin - begin):.2f}", f"{1e3 * read.seconds:.2f}", f"{read.stream}",
               f"{read.offset / MIB:.2f}", f"{read.size / 1024:.0f}"]


def get_rows(found, begin):
    yield ["asked", "first byte", "last byte", "MiB", "from MiB", "key", "connection"]
    for get in found:
        first = "—" if get.first is None else f"{1e3 * (get.first - begin):.1f}"
        yield [f"{1e3 * (get.asked - begin):.1f}", first, f"{1e3 * (get.last - begin):.1f}",
               f"{(get.end - get.start) / MIB:.2f}", f"{get.start / MIB:.2f}", get.key,
               f"{get.connection}"]


if __name__ == "__main__":
    main()
