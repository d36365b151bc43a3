"""Reads a mount in every way while its daemons die, until standard input ends; compares all bytes.

    held.py DIRECTORY LARGE_DIGEST

DIRECTORY has `large`, and small files `small/NNNN`, each of which holds its name. Prints a line of
JSON: how often each was done, and what went wrong.
"""

import collections
import hashlib
import json
import mmap
import os
import random
import sys
import threading

folder, digest = sys.argv[1:]
stop = threading.Event()
done, wrong = collections.Counter(), []
names = sorted(os.listdir(f"{folder}/small"))


def compare(what, is_right):
    done[what] += 1
    if not is_right:
        wrong.append(f"{what}: wrong")


def read():
    sum_ = hashlib.sha256()
    with open(f"{folder}/large", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(1 << 18):
            sum_.update(piece)
    compare("read", sum_.hexdigest() == digest)


def mapped():
    with open(f"{folder}/large", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            compare("mmap", hashlib.sha256(view).hexdigest() == digest)


def direct():
    file = os.open(f"{folder}/large", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 1 << 20)
    sum_ = hashlib.sha256()
    try:
        while length := os.readv(file, [buffer]):
            sum_.update(buffer[:length])
    finally:
        os.close(file)
    compare("O_DIRECT", sum_.hexdigest() == digest)


def scan():
    found = []
    with os.scandir(f"{folder}/small") as entries:
        for entry in entries:
            found.append(entry.name)
            if len(found) % 50 == 0:
                stop.wait(0.01)
    compare("scan", sorted(found) == names)


def stats():
    for name in random.sample(names, 50):
        compare("stat", os.stat(f"{folder}/small/{name}").st_size == len(name))
        compare("none", not os.path.exists(f"{folder}/small/none-{random.random()}"))


def small():
    for name in random.sample(names, 50):
        with open(f"{folder}/small/{name}") as file:
            compare("small", file.read() == name)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def again(work):
    while not stop.is_set():
        try:
            work()
        except Exception as error:  # noqa: BLE001: whatever it is, it is told
            wrong.append(f"{work.__name__}: {error!r}")
            stop.wait(0.1)


threads = [threading.Thread(target=again, args=[work]) for work in (read, mapped, direct, scan, stats, small)]
for thread in threads:
    thread.start()
print("reading", flush=True)
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"done": done, "wrong": wrong[:20]}))
