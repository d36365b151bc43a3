"""The fault matrix: what each mount does when the store, or the way to it, misbehaves.

    python3 benches/faults [--products fasts3-mount s3fs rclone] [--rows WORD] [--seconds 60]
                           [--repeat 5] [--quick]

devserver stands behind a proxy that breaks answers; each product is mounted through it, fresh for
each row, a program reads, and what it got is compared with what the server holds. Prints a Markdown
table (docs/reliability.md): result, seconds, requests. Nothing is judged by its time alone; the
machine may be busy. With --repeat the seconds and requests are medians, and rows that are compared
with each other are measured in turns. The same rows are tests of fasts3-mount in tests/mount/matrix.rs
and tests/mount/changes.rs.
"""

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "field"))

import faulty  # noqa: E402
import prepare  # noqa: E402
import processes  # noqa: E402
import products  # noqa: E402

MIB = 1 << 20
READER = HERE / "reader.py"
# One request in fifty.
MIXED = ["add all * status=503:SlowDown every=193", "add all * reset@20000 every=197",
         "add all * truncate@5000 every=199", "add all * stall@3000 every=211"]


class Row:
    """A fault, and what a program does meanwhile.

    `healed`: a rule that begins after a second, and for how long. `change`: what becomes of the
    object after a second, which `old` bytes of 1 make. `program` and `killed` instead of an action: the
    program that is sent the signal when it has waited for 3 s. `beside`: rows of one such name are
    compared, and their seconds told as a multiple of the first one's. `limit`: seconds, if the row
    takes longer than others.
    """

    def __init__(self, name, wanted, rules, action=("read", "object"), size=4 * MIB, listed=0, **more):
        self.name, self.wanted, self.rules, self.action = name, wanted, rules, action
        self.size, self.listed = size, listed
        self.healed, self.change = more.pop("healed", None), more.pop("change", None)
        self.program, self.killed = more.pop("program", None), more.pop("killed", None)
        self.beside, self.limit = more.pop("beside", name), more.pop("limit", None)
        self.options = more.pop("options", [])
        self.families = more.pop("families", [f"d/:{listed or 1}:20000"])
        assert not more, more


def rows(quick):
    get = "add get object"
    for_ever = "EIO in 31 s, once"
    listing = ("list", "d")
    yield Row("none", "right bytes", [])
    yield Row("503 three times, then well", "right bytes, 3 s more", [f"{get} status=503:SlowDown times=3"])
    yield Row("503 forever", for_ever, [f"{get} status=503:SlowDown"])
    yield Row("500 forever", for_ever, [f"{get} status=500:InternalError"])
    yield Row("resets forever", for_ever, [f"{get} reset@0"])
    yield Row("truncation forever", for_ever, [f"{get} truncate@0"])
    yield Row("first byte never comes, once", "right bytes in 3 s", [f"{get} silent times=1"])
    yield Row("a stall in the middle, once", "right bytes in 6 s", [f"{get} stall@1000000 times=1"])
    yield Row("every GET broken after 100 KB", "right bytes", [f"{get} reset@100000"])
    yield Row("206 with another range", "right bytes or EIO", [f"{get} range=5-104/4194304"],
              ("pread", "object", MIB, 100_000))
    yield Row("206 with another total", "right bytes or EIO", [f"{get} range=0-4194303/5000000"])
    yield Row("200 for a range", "right bytes or EIO", [f"{get} ignore-range"],
              ("pread", "object", 2 * MIB, 100_000))
    yield Row("half the body, lengths agree", "right bytes or EIO", [f"{get} body=50000"],
              size=100_000)
    yield Row("too long a body", "right bytes or EIO", [f"{get} body=200000"], size=100_000)
    yield Row("403", "EACCES at once", [f"{get} status=403:AccessDenied"])
    yield Row("ExpiredToken, once", "right bytes", [f"{get} status=400:ExpiredToken times=1"])
    yield Row("ExpiredToken, forever", "EACCES, asked for once more", [f"{get} status=400:ExpiredToken"])
    for name, fault in [("garbage", "garbage"), ("HTML", "html"), ("truncated XML", "body=1000"),
                        ("empty body", "body=0")]:
        yield Row(f"listing: {name}", "EIO", [f"add list * {fault}"], listing, listed=2345)
    yield Row("listing: repeated token", "EIO in 5 s, < 10 requests", ["add list * repeat-token"],
              listing, listed=2345)
    yield Row("listing: keys that do not advance", "EIO in 5 s, < 10 requests",
              ["add list * backwards"], listing, listed=2345)
    yield Row("server away for 20 s in the middle", "right bytes, no error", [],
              ("slowly", "object"), 256 * MIB, healed=("add all * hangup", 20))
    truth = "old bytes or ESTALE, then "
    yield Row("object overwritten under a reader", truth + "the new ones", [], ("changed", "object"),
              256 * MIB, change="put")
    yield Row("object deleted under a reader", truth + "ENOENT", [], ("changed", "object"),
              256 * MIB, change="delete")
    yield Row("20 objects beside 64 readers of silent ones", "right bytes, soon",
              ["add get stalled/* silent"], ("beside", "well", "stalled"),
              families=["well/:20:2MiB", "stalled/:64:8MiB"])
    silent = ["add all * silent"]
    for word, number in [("SIGKILL", signal.SIGKILL), ("Ctrl-C", signal.SIGINT)]:
        for what, program, rules in [
            ("`cat`", ["cat", "{}/object"], [f"{get} silent"]),
            ("`dd iflag=direct`", ["dd", "if={}/object", "iflag=direct", "bs=1M"], [f"{get} silent"]),
            ("`ls`", ["ls", "{}/d"], silent),
            ("`stat`", ["stat", "{}/d/0"], silent),
        ]:
            yield Row(f"{word} of {what}, server silent", "gone in 2 s", rules, program=program,
                      killed=number)
    yield Row("1 GiB and 2,000 files, no faults", "right bytes", [], ("epoch", "object", "d"),
              1024 * MIB, listed=2000, beside="epoch")
    yield Row("1 GiB and 2,000 files, 2 % of requests fail", "right bytes, 1.6 times as long", MIXED,
              ("epoch", "object", "d"), 1024 * MIB, listed=2000, beside="epoch")
    # One in eight past the page cache, and the budget is a quarter of the object.
    count, limit = (20_000, None) if quick else (1_000_000, 1800)
    yield Row(f"{count:,} random preads of 32 threads, 2 % fail", "right bytes", MIXED,
              ("random", "object", 32, count), 256 * MIB, limit=limit,
              options=["--memory-budget", "64MiB"])


def judge(row, said, expected):
    if row.action[0] == "changed":
        return f"{said['first']}, then {said['then']}"
    if said.get("error"):
        return said["error"]
    if row.action[0] == "list":
        names = said["names"]
        return "all names" if names == row.listed else f"**{names} of {row.listed} names**"
    if row.action[0] == "random":
        return "right bytes" if not said["wrong"] else f"**{said['wrong']} wrong reads**"
    if said["digest"] == expected:
        return "right bytes"
    length = row.action[3] if row.action[0] == "pread" else row.size
    if said.get("length", length) < length:
        return f"**{said['length']} of {length} bytes, no error**"
    return "**wrong bytes**"


def expectation(server, row):
    """The digest of what a program must see."""
    kind, key, *rest = row.action
    if kind in ("read", "slowly") and not row.killed:
        return server.digest(key)
    if kind == "pread":
        return server.digest(key, rest[0], rest[0] + rest[1] - 1)
    if kind == "beside":
        digests = [server.digest(f"well/{number:02}") for number in range(20)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    if kind == "epoch":
        whole = hashlib.sha256(server.digest(key).encode())
        for number in range(row.listed):
            whole.update(server.digest(f"d/{number:0{len(str(row.listed - 1))}}").encode())
        return whole.hexdigest()
    return None


def meddle(server, row):
    """What happens in the middle."""
    if row.healed:
        rule, away = row.healed
        time.sleep(1)
        server.tell(rule)
        server.tell("cut")
        time.sleep(away)
        server.tell("clear")
    if row.change:
        time.sleep(1)
        if row.change == "put":
            server.put("object", b"\2" * row.size)
        else:
            server.delete("object")


def measure(product, row, seconds):
    """Result, seconds, requests."""
    server = faulty.FaultServer({} if row.change else {"object": row.size}, row.families)
    mount = reader = None
    try:
        if row.change:
            server.put("object", b"\1" * row.size)
        expected = expectation(server, row)
        mount = products.Mount(products.MOUNTS[product], server, row.options)
        before = server.requests()
        numbers = [server.tell(rule) for rule in row.rules]
        words = [sys.executable, READER, mount.folder, server.endpoint, *row.action]
        if row.program:
            words = [word.format(mount.folder) for word in row.program]
        start = time.monotonic()
        reader = processes.start(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        meddle(server, row)
        if row.killed:
            time.sleep(3)
            if reader.poll() is not None:
                raise RuntimeError(f"{row.program[0]} did not wait")
            reader.send_signal(row.killed)
            start = time.monotonic()
        try:
            output, _ = reader.communicate(timeout=seconds)
            took = time.monotonic() - start
            if row.killed:
                result = "gone"
            else:
                said = json.loads(output or b'{"error": "died"}')
                took = said.get("took", took)
                result = judge(row, said, expected)
        except subprocess.TimeoutExpired:
            took, result = time.monotonic() - start, f"**nothing in {seconds} s**"
        hits = 0 if row.healed else sum(int(server.tell(f"hits {number}")) for number in numbers)
        # Answers of the proxy itself never reach the server.
        refused = any("status=" in rule or "retry-after=" in rule for rule in row.rules)
        asked = server.requests() - before + (hits if refused and len(row.rules) == 1 else 0)
        return result, took, asked - (row.change is not None)
    finally:
        with contextlib.suppress(Exception):
            server.tell("clear")
        if mount:
            mount.close(by_force=True)
        if reader:
            processes.end(reader, signal.SIGKILL)
        server.close()


def cell(outcomes, first):
    """What is told of a row's outcomes, and the median of their seconds."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors:
        return f"not measured: {errors[0]}", None
    results, times, requests = zip(*outcomes, strict=True)
    counted = collections.Counter(results).most_common()
    result = "; ".join(result if len(counted) == 1 else f"{result} ({count} of {len(results)})"
                       for result, count in counted)
    took = statistics.median(times)
    times_as_long = f" ({took / first:.2f} ×)" if first else ""
    return f"{result}, {took:.1f} s{times_as_long}, {statistics.median(requests):.0f} requests", took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    installed = [name for name in products.available() if name in products.MOUNTS]
    parser.add_argument("--products", nargs="+", default=installed, choices=installed)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--seconds", type=int, default=60, help="longest time for one row")
    parser.add_argument("--repeat", type=int, default=1, help="so often each row, and medians")
    parser.add_argument("--quick", action="store_true", help="20,000 random preads, not a million")
    args = parser.parse_args()
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    # Clean up after a signal, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"| fault | wanted | {' | '.join(args.products)} |")
    print("|" + "---|" * (2 + len(args.products)))
    chosen = [row for row in rows(args.quick) if args.rows in row.name]
    for _, compared in itertools.groupby(chosen, lambda row: row.beside):
        compared = list(compared)
        outcomes = collections.defaultdict(list)
        for _ in range(args.repeat):
            for row, product in itertools.product(compared, args.products):
                try:
                    outcome = measure(product, row, row.limit or args.seconds)
                except Exception as error:  # noqa: BLE001: a row that cannot be measured is one cell
                    outcome = error
                outcomes[row, product].append(outcome)
        first = {}
        for row in compared:
            cells = []
            for product in args.products:
                text, took = cell(outcomes[row, product], first.get(product))
                first.setdefault(product, took)
                cells.append(text)
            print(f"| {row.name} | {row.wanted} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
