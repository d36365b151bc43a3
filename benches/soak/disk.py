"""A soak of the cache on a local disk: two daemons, one directory, killed again and again.

    python3 benches/soak/disk.py --minutes 30 [--size 128MiB] [--every 20] [--damage] [--binaries FOLDER]

Each mount has readers: streams, random preads, small files, all through devserver's faulty proxy. The
data is twice the cache and is dropped from the page cache as it is read, so that reads come from the
disk, from what the other daemon has written there, and from the store. Every --every seconds each daemon
is killed (SIGKILL), in turns, and mounted anew. With --damage files of the cache are damaged all the time:
bits flipped, segments and the index cut, removed or replaced by pipes, all of it removed.

Every byte is compared with what was written. A read may fail only with its daemon. Ends with 1 when a byte
was wrong, or a read failed otherwise or took longer than half a minute.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "faults"), str(HERE.parent / "field")]

import faulty  # noqa: E402
import prepare  # noqa: E402
import products  # noqa: E402
from truth import Bytes  # noqa: E402

MIB = 1 << 20
LARGE, LARGE_BYTES = 3, 64 * MIB
FILES, FILE_BYTES = 1500, 50_000
RULES = ["add all * status=503:SlowDown every=193", "add all * reset@20000 every=197",
         "add all * truncate@5000 every=199"]
READERS = 6
LONGEST = 30
STARTS = 5


class Mounted:
    """One of the daemons. `turn` counts its lives; `dying` while it is killed and comes back."""

    def __init__(self, server, command, options):
        self.server, self.command, self.options = server, command, options
        self.turn, self.dying = 0, False
        self.product = products.Mount(command, server, options)

    @property
    def folder(self):
        return self.product.folder

    def again(self):
        self.dying = True
        os.kill(self.product.pid, signal.SIGKILL)
        self.product.close(by_force=True)
        for tries in range(STARTS, 0, -1):
            try:
                self.product = products.Mount(self.command, self.server, self.options)
                break
            except RuntimeError:
                # The server was too busy, or its faults too many, for a start.
                if tries == 1:
                    raise
        self.turn += 1
        self.dying = False


class Soak:
    def __init__(self, mounts, truth, cache, until):
        self.mounts, self.truth, self.cache, self.until = mounts, truth, cache, until
        self.done, self.wrong, self.failed = collections.Counter(), [], []
        self.longest = 0

    def read(self, seed):
        mount, chance = self.mounts[seed % 2], random.Random(seed)
        while time.monotonic() < self.until:
            turn, began = mount.turn, time.monotonic()
            try:
                if mount.dying:
                    time.sleep(0.05)
                    continue
                chance.choice([self.stream, self.preads, self.small, self.small])(mount, chance)
                self.done["right"] += 1
            except OSError as error:
                if mount.turn == turn and not mount.dying:
                    # The kernel tells of the end before we have noted it.
                    time.sleep(1)
                if mount.turn == turn and not mount.dying:
                    self.failed.append(str(error))
                self.done["failed with its daemon"] += 1
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.02)

    def check(self, key, size, at, got, length):
        if self.truth.differs(key, 0, size, at, got):
            self.wrong.append(f"{key} at {at}, {len(got)} bytes")
        self.done["MiB"] += len(got) / MIB
        if len(got) != min(length, size - at):
            # The kernel gives what it has where the rest fails.
            raise OSError(f"{key} at {at}: {len(got)} bytes instead of {length}")

    def pieces(self, mount, chance, pieces):
        key = f"large/{chance.randrange(LARGE)}"
        file = os.open(f"{mount.folder}/{key}", os.O_RDONLY)
        try:
            for at, length in pieces:
                got = os.pread(file, length, at)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                self.check(key, LARGE_BYTES, at, got, length)
                time.sleep(0.01)
        finally:
            os.close(file)

    def stream(self, mount, chance):
        start = chance.randrange(LARGE_BYTES // MIB - 24)
        self.pieces(mount, chance, [((start + number) * MIB, MIB) for number in range(24)])

    def preads(self, mount, chance):
        self.pieces(mount, chance, [(chance.randrange(LARGE_BYTES), chance.choice([1, 4096, 300_000]))
                                    for _ in range(10)])

    def small(self, mount, chance):
        first = chance.randrange(FILES - 40)
        for number in chance.sample(range(first, first + 40), 40):
            key = f"d/{number:04}"
            with open(f"{mount.folder}/{key}", "rb", buffering=0) as file:
                got = file.read()
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.check(key, FILE_BYTES, 0, got, FILE_BYTES)

    def kill(self, every):
        """Each of them every so many seconds."""
        number = 0
        while self.sleep(every / 2):
            try:
                self.mounts[number % 2].again()
            except (OSError, RuntimeError) as error:
                self.failed.append(f"to mount again: {error}")
                return
            self.done["kills"] += 1
            number += 1

    def damage(self):
        chance = random.Random(1)
        while self.sleep(3 + 4 * chance.random()):
            kind = chance.choice(["flip", "flip", "flip", "cut", "pipe", "remove", "index", "all"])
            inside = self.cache / "fasts3-cache-1"
            try:
                segments = sorted((inside / "segments").iterdir())
                segment = chance.choice(segments) if segments else inside / "index"
                if kind == "flip":
                    with open(segment, "r+b") as file:
                        at = chance.randrange(max(1, os.fstat(file.fileno()).st_size))
                        byte = os.pread(file.fileno(), 1, at) or b"x"
                        os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << chance.randrange(8)]), at)
                elif kind == "cut":
                    os.truncate(segment, chance.randrange(MIB))
                elif kind == "pipe":
                    segment.unlink()
                    os.mkfifo(segment)
                elif kind == "remove":
                    segment.unlink()
                elif kind == "index":
                    os.truncate(inside / "index", chance.randrange(100_000))
                else:
                    shutil.rmtree(inside)
                self.done[f"damage: {kind}"] += 1
            except OSError:
                pass

    def sleep(self, seconds):
        time.sleep(max(0, min(seconds, self.until - time.monotonic())))
        return time.monotonic() < self.until


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--size", default="128MiB", help="--cache-size")
    parser.add_argument("--every", type=float, default=20, help="seconds of a daemon's life")
    parser.add_argument("--damage", action="store_true", help="damage the cache's files, too")
    parser.add_argument("--binaries", type=Path, help="where fasts3-mount and devserver are")
    args = parser.parse_args()
    if args.binaries is None:
        prepare.binaries()
        args.binaries = prepare.TARGET / "release"
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    truth = Bytes(LARGE_BYTES)
    cache = Path(tempfile.mkdtemp(prefix="cache-", dir=prepare.WORK))
    server = faulty.FaultServer({}, [], args.binaries / "devserver")
    mounts = []
    try:
        for number in range(LARGE):
            server.put(f"large/{number}", truth.body(f"large/{number}", 0, LARGE_BYTES))
        for number in range(FILES):
            server.put(f"d/{number:04}", truth.body(f"d/{number:04}", 0, FILE_BYTES))

        def command(server, mountpoint, scratch, options):
            _, *words = products.ours(server, mountpoint, scratch, options)
            return [args.binaries / "fasts3-mount", *words]

        options = ["--memory-budget", "64MiB", "--cache-dir", cache, "--cache-size", args.size,
                   "--cache-reserve", "0"]
        mounts += [Mounted(server, command, options), Mounted(server, command, options)]
        for rule in RULES:
            server.tell(rule)
        soak = Soak(mounts, truth, cache, time.monotonic() + args.minutes * 60)
        jobs = [threading.Thread(target=soak.read, args=(seed,), daemon=True)
                for seed in range(2 * READERS)]
        jobs.append(threading.Thread(target=soak.kill, args=(args.every,), daemon=True))
        if args.damage:
            jobs.append(threading.Thread(target=soak.damage, daemon=True))
        for job in jobs:
            job.start()
        while soak.sleep(60):
            done = {name: round(count) for name, count in sorted(soak.done.items())}
            print(f"{len(soak.wrong)} wrong, {len(soak.failed)} failed, {done}", flush=True)
        for job in jobs:
            job.join(2 * LONGEST)
        server.tell("clear")
        stuck = sum(job.is_alive() for job in jobs)
        tool = args.binaries / "fasts3-mount"
        found = subprocess.run([tool, "cache", "verify", "--json", cache], capture_output=True, text=True)
        verified = json.loads(found.stdout) if found.stdout else found.stderr
        done = {name: round(count) for name, count in sorted(soak.done.items())}
        print(f"{len(soak.wrong)} wrong {soak.wrong[:5]}, {len(soak.failed)} failed {soak.failed[:5]}, "
              f"longest {soak.longest:.1f} s, {stuck} stuck, {done}, verify: {verified}")
        return 1 if soak.wrong or soak.failed or soak.longest > LONGEST or stuck else 0
    finally:
        for mount in mounts:
            mount.product.close(by_force=True)
        server.close()
        shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
