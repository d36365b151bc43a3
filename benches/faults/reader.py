"""The reading program, a process of its own: prints its result as JSON."""

import concurrent.futures
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request

MIB = 1 << 20


def digest(path, pause=0.0):
    return whole(path, pause)[0]


def whole(path, pause):
    """Digest and length of all that a program reads."""
    found, length = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(MIB):
            found.update(chunk)
            length += len(chunk)
            time.sleep(pause)
    return found.hexdigest(), length


def epoch(large, folder):
    """A large object and many small ones, at the same time."""
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        first = pool.submit(digest, large)
        names = sorted(os.listdir(folder))
        found = list(pool.map(lambda name: digest(os.path.join(folder, name)), names))
    whole = hashlib.sha256(first.result().encode())
    for one in found:
        whole.update(one.encode())
    return whole.hexdigest()


def beside(folder, stalled):
    """All of a folder, while 64 others wait for what does not come; and the seconds of that alone."""
    cats = [subprocess.Popen(["cat", file.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for file in os.scandir(stalled)]
    try:
        time.sleep(3)
        start = time.monotonic()
        found = [digest(os.path.join(folder, name)) for name in sorted(os.listdir(folder))]
        took = time.monotonic() - start
    finally:
        for cat in cats:
            cat.kill()
    return {"digest": hashlib.sha256("".join(found).encode()).hexdigest(), "took": took}


def changed(path):
    """What is seen of an object of ones that becomes one of twos, or none, while it is read slowly;
    and what whoever opens it after that sees in the end."""
    seen, length = set(), 0
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while chunk := file.read(MIB):
                seen |= set(chunk[::4096])
                length += len(chunk)
                time.sleep(0.02)
        words = {(1,): "old bytes", (2,): "new bytes", (1, 2): "**old and new bytes mixed**"}
        first = words.get(tuple(sorted(seen)), "**bytes of neither**")
        if length != size:
            first = f"**{length} of {size} bytes, no error**"
    except OSError as error:
        first = name(error) if seen <= {1} else f"**mixed, then {name(error)}**"
    start = time.monotonic()
    while time.monotonic() < start + 10:
        try:
            with open(path, "rb", buffering=0) as file:
                then = {b"\1": "**still the old bytes**", b"\2": "new bytes"}.get(file.read(1), "**others**")
        except OSError as error:
            then = name(error)
        if then in ("new bytes", "ENOENT"):
            break
        time.sleep(0.1)
    return {"first": first, "then": then}


def name(error):
    return errno.errorcode.get(error.errno, str(error))


def wrong_reads(path, url, threads, count):
    """Of random preads; what is right is asked of the server itself, before there are faults."""
    truth = bytearray()
    # 2 % of these fail as well, so they are asked for until they come.
    size = os.stat(path).st_size
    while len(truth) < size:
        last = min(len(truth) + 4 * MIB, size) - 1
        request = urllib.request.Request(url, headers={"Range": f"bytes={len(truth)}-{last}"})
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                got = answer.read()
        except OSError:
            continue
        if len(got) == last + 1 - len(truth):
            truth += got

    def reads(seed):
        chance = random.Random(seed)
        wrong = 0
        # One in eight past the page cache, which soon has everything.
        cached, direct = (os.open(path, os.O_RDONLY | flag) for flag in (0, os.O_DIRECT))
        for number in range(count // threads):
            at = chance.randrange(size)
            length = chance.choice([1, 4096, 40_000, 131_072, 300_000])
            file = cached if number % 8 else direct
            wrong += os.pread(file, length, at) != truth[at:at + length]
        os.close(cached)
        os.close(direct)
        return wrong

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(reads, range(threads)))


def main():
    folder, endpoint, kind, key, *rest = sys.argv[1:]
    path = os.path.join(folder, key)
    start = time.monotonic()
    try:
        if kind == "list":
            said = {"names": len(os.listdir(path))}
        elif kind == "pread":
            file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            got = os.pread(file, int(rest[1]), int(rest[0]))
            said = {"digest": hashlib.sha256(got).hexdigest(), "length": len(got)}
        elif kind == "epoch":
            said = {"digest": epoch(path, os.path.join(folder, rest[0]))}
        elif kind == "beside":
            said = beside(path, os.path.join(folder, rest[0]))
        elif kind == "changed":
            said = changed(path)
        elif kind == "random":
            url = f"{endpoint}/data/{key}"
            said = {"wrong": wrong_reads(path, url, int(rest[0]), int(rest[1]))}
        else:
            found, length = whole(path, 0.02 if kind == "slowly" else 0.0)
            said = {"digest": found, "length": length}
    except OSError as error:
        said = {"error": name(error)}
    print(json.dumps({"took": time.monotonic() - start} | said))


main()
