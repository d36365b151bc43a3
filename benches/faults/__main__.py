"""The fault matrix: what each mount does when the store, or the way to it, misbehaves.

    python3 benches/faults [--products fasts3-mount s3fs rclone] [--rows WORD] [--seconds 60]

devserver stands behind a proxy that breaks answers; each product is mounted through it, fresh for
each row, a program reads, and what it got is compared with what the server holds. Prints a Markdown
table (docs/reliability.md): result, seconds, requests. Nothing is judged by its time alone; the
machine may be busy. The same rows are tests of fasts3-mount in tests/mount/matrix.rs.
"""

import argparse
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "field"))

import prepare  # noqa: E402
import processes  # noqa: E402
import products  # noqa: E402
import servers  # noqa: E402

MIB = 1 << 20
READER = HERE / "reader.py"


class FaultServer(servers.DevServer):
    """devserver with its proxy, told of rules by lines."""

    def __init__(self, objects, families):
        command = [prepare.TARGET / "release" / "devserver", "--listen", "127.0.0.1:0", "--faults"]
        command += ["--bucket", servers.BUCKET, "--public"]
        for family in families:
            command += ["--family", family]
        for key, size in objects.items():
            command += ["--object", f"{key}={size}"]
        self._begin(command, stdin=subprocess.PIPE)

    def tell(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        word, _, answer = self._line().partition(" ")
        if word != "ok":
            raise RuntimeError(f"{line}: {answer}")
        return answer

    def requests(self):
        counts = self.counts()
        return counts["list"] + counts["head"] + counts["get"] + counts["other"]

    def digest(self, key, first=0, last=None):
        """Of the object's bytes, not through any mount."""
        path = f"/{servers.BUCKET}/{urllib.parse.quote(key)}"
        request = urllib.request.Request(self.endpoint + path)
        if last is not None:
            request.add_header("Range", f"bytes={first}-{last}")
        digest = hashlib.sha256()
        with urllib.request.urlopen(request, timeout=60) as answer:
            while chunk := answer.read(MIB):
                digest.update(chunk)
        return digest.hexdigest()


class Row:
    """A fault, and what a program does meanwhile."""

    def __init__(self, name, wanted, rules, action=("read", "object"), size=4 * MIB, healed=None,
                 kill_after=None, listed=0):
        self.name, self.wanted, self.rules, self.action = name, wanted, rules, action
        self.size, self.healed, self.kill_after, self.listed = size, healed, kill_after, listed


def rows():
    get = "add get object"
    for_ever = "EIO in 31 s, once"
    listing = ("list", "d")
    yield Row("none", "right bytes", [])
    yield Row("503 three times, then well", "right bytes, 3 s more", [f"{get} status=503:SlowDown times=3"])
    yield Row("503 for ever", for_ever, [f"{get} status=503:SlowDown"])
    yield Row("500 for ever", for_ever, [f"{get} status=500:InternalError"])
    yield Row("resets for ever", for_ever, [f"{get} reset@0"])
    yield Row("truncation for ever", for_ever, [f"{get} truncate@0"])
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
    for name, fault in [("garbage", "garbage"), ("HTML", "html"), ("truncated XML", "body=1000"),
                        ("empty body", "body=0")]:
        yield Row(f"listing: {name}", "EIO", [f"add list * {fault}"], listing, listed=2345)
    yield Row("listing: repeated token", "EIO in 5 s, < 10 requests", ["add list * repeat-token"],
              listing, listed=2345)
    yield Row("listing: keys that do not advance", "EIO in 5 s, < 10 requests",
              ["add list * backwards"], listing, listed=2345)
    yield Row("server away for 20 s in the middle", "right bytes, no error", [],
              ("slowly", "object"), 256 * MIB, healed=("add all * hangup", 20))
    yield Row("SIGKILL of a reader, server silent", "gone in 2 s", [f"{get} silent"], kill_after=3)
    mixed = ["add all * status=503:SlowDown every=193", "add all * reset@20000 every=197",
             "add all * truncate@5000 every=199", "add all * stall@3000 every=211"]
    yield Row("1 GiB and 2,000 files, no faults", "right bytes", [], ("epoch", "object", "d"),
              1024 * MIB, listed=2000)
    yield Row("the same, 2 % of all requests fail", "right bytes, 1.6 times as long", mixed,
              ("epoch", "object", "d"), 1024 * MIB, listed=2000)
    yield Row("random preads of 32 threads, 2 % fail", "right bytes", mixed,
              ("random", "object", 32, 20_000), 256 * MIB)


def judge(row, said, expected):
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


def measure(product, row, seconds):
    families = [f"d/:{row.listed}:20000"] if row.listed else ["d/:1:1"]
    server = FaultServer({"object": row.size}, families)
    mount = reader = None
    try:
        kind, key, *rest = row.action
        expected = None
        if kind in ("read", "slowly"):
            expected = server.digest(key)
        elif kind == "pread":
            expected = server.digest(key, rest[0], rest[0] + rest[1] - 1)
        elif kind == "epoch":
            whole = hashlib.sha256(server.digest(key).encode())
            for number in range(row.listed):
                whole.update(server.digest(f"d/{number:0{len(str(row.listed - 1))}}").encode())
            expected = whole.hexdigest()
        mount = products.Mount(products.MOUNTS[product], server, [])
        before = server.requests()
        numbers = [server.tell(rule) for rule in row.rules]
        start = time.monotonic()
        reader = processes.start(
            [sys.executable, READER, mount.folder, server.endpoint, *row.action],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        if row.healed:
            rule, away = row.healed
            time.sleep(1)
            server.tell(rule)
            server.tell("cut")
            time.sleep(away)
            server.tell("clear")
        if row.kill_after:
            time.sleep(row.kill_after)
            reader.send_signal(signal.SIGKILL)
            start = time.monotonic()
        try:
            output, _ = reader.communicate(timeout=seconds)
            took = time.monotonic() - start
            if row.kill_after:
                result = "gone"
            else:
                said = json.loads(output or b'{"error": "died"}')
                took = said.get("took", took)
                result = judge(row, said, expected)
        except subprocess.TimeoutExpired:
            took, result = time.monotonic() - start, f"**nothing in {seconds} s**"
        hits = 0 if row.healed else sum(int(server.tell(f"hits {number}")) for number in numbers)
        # What the proxy answers itself never reaches the server.
        refused = any("status=" in rule or "retry-after=" in rule for rule in row.rules)
        asked = server.requests() - before + (hits if refused and len(row.rules) == 1 else 0)
        return f"{result}, {took:.1f} s, {asked} requests"
    finally:
        with contextlib.suppress(Exception):
            server.tell("clear")
        if mount:
            mount.close(by_force=True)
        if reader:
            processes.end(reader, signal.SIGKILL)
        server.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    installed = [name for name in products.available() if name in products.MOUNTS]
    parser.add_argument("--products", nargs="+", default=installed, choices=installed)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--seconds", type=int, default=60, help="longest time for one row")
    args = parser.parse_args()
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    print(f"| fault | wanted | {' | '.join(args.products)} |")
    print("|" + "---|" * (2 + len(args.products)))
    for row in rows():
        if args.rows not in row.name:
            continue
        cells = []
        for product in args.products:
            try:
                cells.append(measure(product, row, args.seconds))
            except Exception as error:  # noqa: BLE001: a row that cannot be measured is one cell
                cells.append(f"not measured: {error}")
        print(f"| {row.name} | {row.wanted} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
