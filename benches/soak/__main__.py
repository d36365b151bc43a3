"""A soak: everything mixed, under faults, for as long as told; memory, files and threads stay flat.

    python3 benches/soak --minutes 60 [--budget 64MiB] [--binaries FOLDER]
    python3 benches/soak --minutes 30 --deaths [--upgrade OTHER_BINARY]

Threads of this process read a mount of fasts3-mount through devserver's faulty proxy: streams, random
preads with and without the page cache, epochs, listings, lookups, killed readers; objects are
overwritten, made and deleted under them. 2 % of all requests fail (503, reset, truncation, stall); now
and then the store throttles, is away or is silent for some seconds, and all names are dropped (SIGHUP).
The data is four times the budget and is dropped from the page cache as it is read, so that reads go to
the store. Everything is paced: a busy machine does less, and is not filled.

Every byte is compared with what was written. The daemon's memory, files and threads are noted a hundred
times; flat means that the median of the last tenth is at most 1.1 times that of the second tenth and a
little (8 MiB, 8 files, 2 threads). Ends with 1 when a byte was wrong, an operation failed or took longer
than a minute, or one of the three was not flat.

With --deaths the store works, and the daemon is killed every 10 to 20 s (SIGKILL), or every third time
replaced by the other binary (SIGQUIT): the mount outlives it. Files are mapped, too. The pause from the
death to the next byte that a new read gets is measured. Memory, files and threads are those of a daemon
that is young, and not compared.
"""

import argparse
import collections
import contextlib
import errno
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "faults"), str(HERE.parent / "field")]

import faulty  # noqa: E402
import prepare  # noqa: E402
import processes  # noqa: E402
import products  # noqa: E402
from truth import Bytes  # noqa: E402

MIB = 1 << 20
LARGE, LARGE_BYTES = 3, 64 * MIB
FILES, FILE_BYTES = 1500, 50_000
CHANGING, CHANGING_BYTES = 8, 3 * MIB
# One request in fifty, and what one cannot resume from costs its reader 2 s.
RULES = ["add all * status=503:SlowDown every=193", "add all * reset@20000 every=197",
         "add all * truncate@5000 every=199", "add all * stall@3000 every=211"]
# In turns: what is broken, how, for how many seconds.
TROUBLES = [("throttled", ["add all * status=503:SlowDown every=2"], 5),
            ("away", ["add all * hangup", "cut"], 10),
            ("silent", ["add all * silent"], 6)]
TTL, NEGATIVE_TTL = 5, 2
LONGEST = 60
FLAT = {"MiB": 8, "files": 8, "threads": 2}


class Soak:
    def __init__(self, mount, server, truth, until):
        self.mount, self.folder, self.server, self.truth = mount, mount.folder, server, truth
        self.until = until
        self.done, self.wrong, self.failed = collections.Counter(), [], []
        self.longest, self.began = collections.Counter(), {}
        # Of deaths: the program that is started again, its other builds, and the pauses.
        self.program, self.upgrade, self.pauses = None, [], collections.defaultdict(list)
        # Names that come and go: when each was made and, after that, deleted.
        self.fresh, self.refused = {}, 0

    def go(self, what, seed):
        """One kind of work again and again, each turn timed."""
        chance = random.Random(f"{what} {seed}")
        while time.monotonic() < self.until:
            self.began[what, seed] = time.monotonic()
            try:
                getattr(self, what)(chance)
            except OSError as error:
                self.failed.append(f"{what}: {error}")
                time.sleep(0.1)
            except Exception as error:  # noqa: BLE001: whatever it is, it ends up in the report
                self.failed.append(f"{what}: {error!r}")
                time.sleep(0.1)
            self.began.pop((what, seed), None)
            self.done[what] += 1

    @contextlib.contextmanager
    def timed(self, what):
        start = time.monotonic()
        yield
        self.longest[what] = max(self.longest[what], time.monotonic() - start)

    def check(self, key, version, size, at, got):
        if self.truth.differs(key, version, size, at, got):
            self.wrong.append(f"{key} at {at}")
        self.done["MiB read"] += len(got) / MIB

    def stream(self, chance):
        """A whole large object, in order, not faster than 32 MiB/s."""
        key, at = f"large/{chance.randrange(LARGE)}", 0
        with open(f"{self.folder}/{key}", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while time.monotonic() < self.until:
                with self.timed("stream"):
                    got = file.read(MIB)
                if not got:
                    break
                self.check(key, 0, LARGE_BYTES, at, got)
                at += len(got)
                time.sleep(0.03)
            else:
                return
        if at != LARGE_BYTES:
            self.wrong.append(f"{key}: {at} bytes")
        time.sleep(chance.random())

    def mapped(self, chance):
        """A whole large object through a mapping."""
        key = f"large/{chance.randrange(LARGE)}"
        with open(f"{self.folder}/{key}", "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                for at in range(0, LARGE_BYTES, MIB):
                    if time.monotonic() > self.until:
                        return
                    with self.timed("mmap"):
                        got = view[at:at + MIB]
                    self.check(key, 0, LARGE_BYTES, at, got)
                    time.sleep(0.03)

    def deaths(self, chance):
        """The daemon dies; how long does a read take that comes then?"""
        self.sleep(10 + 10 * chance.random())
        if time.monotonic() > self.until - 5:
            return
        is_upgrade = self.upgrade and self.done["deaths"] % 3 == 2
        if is_upgrade:
            shutil.copy2(self.upgrade[self.done["upgrades"] % 2], f"{self.program}.new")
            os.replace(f"{self.program}.new", self.program)
        pid = self.mount.daemon()
        key = f"large/{chance.randrange(LARGE)}"
        file = os.open(f"{self.folder}/{key}", os.O_RDONLY | os.O_DIRECT)
        try:
            begun = time.monotonic()
            os.kill(pid, signal.SIGQUIT if is_upgrade else signal.SIGKILL)
            # A daemon that leaves answers until it has ended.
            while is_upgrade and os.path.exists(f"/proc/{pid}"):
                begun = time.monotonic()
            with self.timed("read after a death"):
                got = os.pread(file, 4096, chance.randrange(LARGE_BYTES // 4096) * 4096)
            self.pauses["upgrade" if is_upgrade else "SIGKILL"].append(time.monotonic() - begun)
        finally:
            os.close(file)
        self.done["upgrades"] += bool(is_upgrade)
        if len(got) != 4096:
            self.wrong.append(f"{key}: {len(got)} bytes")

    def preads(self, chance):
        """Some here, some there, half of them past the page cache."""
        key = f"large/{chance.randrange(LARGE)}"
        directly = chance.choice([0, os.O_DIRECT])
        file = os.open(f"{self.folder}/{key}", os.O_RDONLY | directly)
        try:
            for _ in range(20):
                at, length = chance.randrange(LARGE_BYTES), chance.choice([1, 4096, 40_000, 300_000])
                if not directly:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                with self.timed("pread"):
                    got = os.pread(file, length, at)
                if len(got) != min(length, LARGE_BYTES - at):
                    self.wrong.append(f"{key} at {at}: {len(got)} of {length}")
                self.check(key, 0, LARGE_BYTES, at, got)
                time.sleep(0.05)
        finally:
            os.close(file)

    def epoch(self, chance):
        """All small files, shuffled, each dropped from the page cache when it was read."""
        with self.timed("listdir"):
            names = os.listdir(f"{self.folder}/d")
        if sorted(names) != [f"{number:04}" for number in range(FILES)]:
            self.wrong.append(f"d: {len(names)} names")
        chance.shuffle(names)
        for name in names:
            if time.monotonic() > self.until:
                return
            with self.timed("small file"), open(f"{self.folder}/d/{name}", "rb") as file:
                got = file.read()
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if len(got) != FILE_BYTES:
                self.wrong.append(f"d/{name}: {len(got)} bytes")
            self.check(f"d/{name}", 0, FILE_BYTES, 0, got)
            time.sleep(0.03)

    def names(self, chance):
        for number in chance.sample(range(FILES), 20):
            with self.timed("stat"):
                size = os.stat(f"{self.folder}/d/{number:04}").st_size
                there = os.path.exists(f"{self.folder}/d/none-{number}-{chance.random()}")
            if size != FILE_BYTES or there:
                self.wrong.append(f"d/{number:04}: {size}, {there}")
        with self.timed("scandir"):
            for entry in os.scandir(self.folder):
                if not entry.is_dir():
                    self.wrong.append(entry.name)
        time.sleep(1)

    def killed(self, chance):
        """A reader that is killed, waiting or not. What waits directly is gone with its answer."""
        path = f"{self.folder}/large/{chance.randrange(LARGE)}"
        words = chance.choice([["cat", path], ["dd", f"if={path}", "iflag=direct", "bs=1M", "status=none"],
                               ["ls", "-l", f"{self.folder}/d"]])
        reader = processes.start(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.random() / 2)
        reader.kill()
        with self.timed("killed reader"):
            reader.wait(LONGEST)
        time.sleep(chance.random() * 3)

    def overwriter(self, chance):
        """Each version is longer by a byte, so that its size tells which it is."""
        number = chance.randrange(CHANGING)
        version = self.done["overwriter"] + 1
        body = self.truth.body(f"changing/{number}", version, CHANGING_BYTES + version)
        self.server.put(f"changing/{number}", body)
        time.sleep(chance.random())

    def overwritten(self, chance):
        """All of one version, slowly, or ESTALE."""
        key, at = f"changing/{chance.randrange(CHANGING)}", 0
        try:
            with open(f"{self.folder}/{key}", "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                version = max(0, size - CHANGING_BYTES)
                while got := file.read(300_000):
                    self.check(key, version, size, at, got)
                    at += len(got)
                    time.sleep(chance.choice([0, 0, 0.1]))
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if at != size:
                    self.wrong.append(f"{key}: {at} of {size}")
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self.done["stale"] += 1
        time.sleep(chance.random() / 5)

    def maker(self, chance):
        """New names all the time; after half a minute they go again."""
        number = self.done["maker"]
        key, size = f"fresh/{number % 10}/{number}", chance.randrange(1, 400_000)
        self.server.put(key, self.truth.body(key, 0, size))
        self.fresh[key] = (size, time.monotonic(), None)
        for key, (size, made, gone) in list(self.fresh.items()):
            if gone is None and time.monotonic() > made + 30:
                # Noted before, so that a reader that finds nothing knows why.
                self.fresh[key] = size, made, time.monotonic()
                self.server.delete(key)
            elif gone is not None and time.monotonic() > gone + 60:
                del self.fresh[key]
        time.sleep(chance.random() / 5)

    def newest(self, chance):
        """A new name is there when its absence has been believed for long enough, and its bytes
        are right; a deleted one is the old bytes, ESTALE or ENOENT."""
        started = time.monotonic()
        known = list(self.fresh.items())
        if not known:
            time.sleep(0.1)
            return
        key, (size, made, _) = chance.choice(known)
        try:
            with self.timed("new name"), open(f"{self.folder}/{key}", "rb") as file:
                got = file.read()
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if len(got) != size:
                self.wrong.append(f"{key}: {len(got)} of {size}")
            self.check(key, 0, size, 0, got)
        except OSError as error:
            gone = self.fresh.get(key, (0, 0, 0))[2] is not None
            early = started < made + 2 * TTL + 1
            if not (error.errno == errno.ENOENT and (gone or early) or error.errno == errno.ESTALE and gone):
                raise
            self.done["not there"] += 1
        time.sleep(0.05)

    def troubles(self, chance):
        """Every half minute one of them, and names dropped now and then."""
        for name, rules, seconds in TROUBLES:
            for _ in range(2):
                self.sleep(12 + 6 * chance.random())
                os.kill(self.mount.pid, signal.SIGHUP)
            if time.monotonic() > self.until - seconds:
                return
            self.note_refused()
            self.server.tell("clear")
            for rule in rules:
                self.server.tell(rule)
            self.sleep(seconds)
            self.server.tell("clear")
            for rule in RULES:
                self.server.tell(rule)
            self.done[name] += 1

    def note_refused(self):
        """Requests that the proxy has answered itself: the first rule's, until it is cleared."""
        self.refused += int(self.server.tell("hits 0"))

    def sleep(self, seconds):
        time.sleep(max(0, min(seconds, self.until - time.monotonic())))

    def stuck(self):
        now = time.monotonic()
        return [what for (what, _), began in list(self.began.items())
                if what in ("names", "overwritten", "newest") and now - began > 2 * LONGEST]


def daemon(holder):
    """The process that serves, whose parent is the holder; waits for one."""
    while True:
        for pid in processes.children(holder):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] != "Z":
                    return pid
        time.sleep(0.005)


def state(pid):
    """Memory, open files and threads."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    rss = int(fields["VmRSS"].split()[0]) / 1024
    return rss, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])


def reads(server):
    """Requests of the mount: nothing else reads, and it does not write."""
    with server.turn:
        counts = server.counts()
    return counts["list"] + counts["head"] + counts["get"]


def fill(server, truth):
    for number in range(LARGE):
        server.put(f"large/{number}", truth.body(f"large/{number}", 0, LARGE_BYTES))
    for number in range(CHANGING):
        server.put(f"changing/{number}", truth.body(f"changing/{number}", 0, CHANGING_BYTES))
    for number in range(FILES):
        server.put(f"d/{number:04}", truth.body(f"d/{number:04}", 0, FILE_BYTES))
    server.put("fresh/first", b"x")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--budget", default="64MiB", help="--memory-budget of the mount")
    parser.add_argument("--deaths", action="store_true", help="kill the daemon again and again")
    parser.add_argument("--upgrade", type=Path, help="with --deaths: another build, in turns with the first")
    parser.add_argument("--binaries", type=Path, help="where fasts3-mount and devserver are")
    args = parser.parse_args()
    if args.binaries is None:
        prepare.binaries()
        args.binaries = prepare.TARGET / "release"
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    # Clean up after a signal, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    truth = Bytes(LARGE_BYTES)
    server = faulty.FaultServer({}, [], args.binaries / "devserver")
    mount = soak = None
    try:
        fill(server, truth)

        program = args.binaries / "fasts3-mount"
        if args.deaths:
            program = shutil.copy2(program, prepare.WORK / "fasts3-mount")

        def command(server, mountpoint, scratch, options):
            _, *words = products.ours(server, mountpoint, scratch, options)
            return [program, *words]

        mount = products.Mount(command, server, [
            "--memory-budget", args.budget, "--metadata-ttl", f"{TTL}s",
            "--negative-ttl", f"{NEGATIVE_TTL}s", *(["--outlive", "always"] if args.deaths else [])])
        for rule in RULES:
            if not args.deaths:
                server.tell(rule)
        start, seconds = time.monotonic(), args.minutes * 60
        before = reads(server)
        soak = Soak(mount, server, truth, start + seconds)
        jobs = ["stream", *["preads"] * 4, *["epoch"] * 2, "names", "killed", "overwriter",
                *["overwritten"] * 2, "maker", *["newest"] * 2,
                *(["mapped", "deaths"] if args.deaths else ["troubles"])]
        mount.daemon = lambda: daemon(mount.pid) if args.deaths else mount.pid
        if args.deaths:
            soak.program = program
            soak.upgrade = args.upgrade and [args.upgrade, args.binaries / "fasts3-mount"]
        # Daemons: one that is stuck in the kernel must not keep us from saying so.
        running = [threading.Thread(target=soak.go, args=(job, seed), daemon=True)
                   for seed, job in enumerate(jobs)]
        for job in running:
            job.start()
        seen, stuck = [], set()
        for sample in range(1, 101):
            time.sleep(max(0, start + seconds * (sample - 0.5) / 100 - time.monotonic()))
            with contextlib.suppress(OSError, KeyError):
                seen.append(state(mount.daemon()))
            stuck.update(soak.stuck())
            if sample % 10 == 0:
                figures = "{:.0f} MiB, {} files, {} threads".format(*seen[-1])
                done = {name: round(count) for name, count in sorted(soak.done.items())}
                print(f"{sample * args.minutes / 100:5.1f} min: {figures}, "
                      f"{reads(server) - before} requests, {len(soak.wrong)} wrong, "
                      f"{len(soak.failed)} failed, {done}", flush=True)
        # Every operation ends in a minute, and its thread sees then that the time is over.
        for job in running:
            job.join(max(0, start + seconds + 3 * LONGEST - time.monotonic()))
            if job.is_alive():
                stuck.add("a thread at the end")
        if not args.deaths:
            soak.note_refused()
        return report(soak, seen, stuck, reads(server) - before + soak.refused, mount, server)
    finally:
        if soak:
            soak.until = 0
        if mount:
            mount.close(by_force=True)
        server.close()


def report(soak, seen, stuck, requests, mount, server):
    used = [processes.cpu_seconds(pid) for pid in (mount.daemon(), server.process.pid, os.getpid())]
    for what, pauses in soak.pauses.items():
        print(f"{what}: {len(pauses)} times; pause median {statistics.median(pauses):.2f} s, "
              f"longest {max(pauses):.2f} s")
    print(f"{requests} requests to the store; CPU seconds of the daemon, the server, this: "
          f"{', '.join(f'{seconds:.0f}' for seconds in used)}")
    print("longest:", ", ".join(f"{what} {seconds:.1f} s" for what, seconds in sorted(soak.longest.items())))
    flat = True
    for (unit, slack), values in zip(FLAT.items(), zip(*seen), strict=True):
        early, late = statistics.median(values[10:20]), statistics.median(values[90:])
        holds = late <= 1.1 * early + slack
        flat &= holds or bool(soak.pauses)
        print(f"{unit}: median of the second tenth {early:.0f}, of the last {late:.0f}, "
              f"most {max(values):.0f}: {'flat' if holds else 'NOT FLAT'}")
    slow = {what: seconds for what, seconds in soak.longest.items() if seconds > LONGEST}
    print(f"{len(soak.wrong)} wrong {soak.wrong[:5]}, {len(soak.failed)} failed {soak.failed[:5]}, "
          f"longer than {LONGEST} s: {slow}, stuck: {sorted(stuck)}")
    return 1 if soak.wrong or soak.failed or slow or stuck or not flat else 0


if __name__ == "__main__":
    sys.exit(main())
