"""A soak: everything mixed, under faults, for as long as told; memory, files and threads stay flat.

    python3 benches/soak --minutes 60

Threads of this process read a mount of fasts3-mount through devserver's faulty proxy: streams, random
preads (compared with what the server holds), epochs, listings, stats, readers that are killed. Every
tenth of the time the daemon's memory, descriptors and threads are noted. Ends with 1 when a byte was
wrong, an operation failed, or one of the three grew by more than a fifth after the first third.
"""

import argparse
import concurrent.futures
import os
import random
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "faults"), str(HERE.parent / "field")]

import importlib.util  # noqa: E402

import prepare  # noqa: E402
import processes  # noqa: E402
import products  # noqa: E402

spec = importlib.util.spec_from_file_location("faults", HERE.parent / "faults" / "__main__.py")
faults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)

MIB = 1 << 20
FILES, FILE_BYTES, LARGE = 2000, 20_000, 128 * MIB
RULES = ["add all * status=503:SlowDown every=193", "add all * reset@20000 every=197",
         "add all * truncate@5000 every=199", "add all * stall@3000 every=499"]


class Soak:
    def __init__(self, folder, truth, until):
        self.folder, self.truth, self.until = folder, truth, until
        self.done, self.wrong, self.failed = {}, 0, []

    def go(self, what, seed):
        chance = random.Random(seed)
        while time.monotonic() < self.until:
            try:
                getattr(self, what)(chance)
            except OSError as error:
                self.failed.append(f"{what}: {error}")
            self.done[what] = self.done.get(what, 0) + 1

    def stream(self, chance):
        at = 0
        with open(f"{self.folder}/large", "rb", buffering=0) as file:
            # The kernel's copy is dropped, so that every turn goes to the daemon.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(MIB):
                self.wrong += chunk != self.truth[at:at + len(chunk)]
                at += len(chunk)
                if time.monotonic() > self.until:
                    return
        self.wrong += at != LARGE

    def preads(self, chance):
        file = os.open(f"{self.folder}/large", os.O_RDONLY | chance.choice([0, os.O_DIRECT]))
        for _ in range(200):
            at, length = chance.randrange(LARGE), chance.choice([1, 4096, 40_000, 300_000])
            self.wrong += os.pread(file, length, at) != self.truth[at:at + length]
        os.close(file)

    def epoch(self, chance):
        names = os.listdir(f"{self.folder}/d")
        self.wrong += len(names) != FILES
        chance.shuffle(names)
        for name in names:
            with open(f"{self.folder}/d/{name}", "rb") as file:
                self.wrong += len(file.read()) != FILE_BYTES
            if time.monotonic() > self.until:
                return

    def names(self, chance):
        for name in chance.sample(range(FILES), 50):
            self.wrong += os.stat(f"{self.folder}/d/{name:04}").st_size != FILE_BYTES
            self.wrong += os.path.exists(f"{self.folder}/d/none-{name}")

    def killed(self, chance):
        reader = processes.start(["cat", f"{self.folder}/large"], stdout=subprocess.DEVNULL)
        time.sleep(chance.random() / 2)
        reader.kill()
        reader.wait()
        time.sleep(1)


def state(pid):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    rss = int(fields["VmRSS"].split()[0]) / 1024
    return rss, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    prepare.binaries()
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    server = faults.FaultServer({"large": LARGE}, [f"d/:{FILES}:{FILE_BYTES}"])
    mount = None
    try:
        with urllib.request.urlopen(f"{server.endpoint}/data/large", timeout=60) as answer:
            truth = answer.read()
        options = ["--memory-budget", "256MiB", "--metadata-ttl", "5s"]
        mount = products.Mount(products.MOUNTS[products.OURS], server, options)
        for rule in RULES:
            server.tell(rule)
        seconds = args.minutes * 60
        start = time.monotonic()
        soak = Soak(mount.folder, truth, start + seconds)
        jobs = ["stream", "stream", *["preads"] * 8, *["epoch"] * 4, "names", "names", "killed"]
        seen = []
        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            running = [pool.submit(soak.go, job, seed) for seed, job in enumerate(jobs)]
            for tenth in range(1, 11):
                time.sleep(max(0, start + seconds * tenth / 10 - 1 - time.monotonic()))
                seen.append(state(mount.pid))
                rss, files, threads = seen[-1]
                print(f"{tenth * args.minutes / 10:5.1f} min: {rss:6.0f} MiB, {files} files, "
                      f"{threads} threads, {soak.done}", flush=True)
            for job in running:
                job.result(timeout=120)
        # The third time of ten is the first that counts: caches are full by then.
        grown = [max(late) > 1.2 * max(early) + slack for early, late, slack in
                 zip(zip(*seen[:4]), zip(*seen[4:]), (32, 16, 4), strict=True)]
        requests = server.requests()
        print(f"{requests} requests, {soak.wrong} wrong, {len(soak.failed)} failed "
              f"{soak.failed[:3]}, grown (memory, files, threads): {grown}")
        return 1 if soak.wrong or soak.failed or any(grown) else 0
    finally:
        if mount:
            mount.close(by_force=True)
        server.close()


if __name__ == "__main__":
    sys.exit(main())
