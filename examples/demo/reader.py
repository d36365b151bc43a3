"""Reads a mount through plain open(), and says how long it took.

A step comes as a line of JSON on standard input, what was measured goes as one to standard output.
Bytes are checked when the clock has stopped.
"""

import json
import os
import platform
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor


def whole(path):
    with open(path, "rb") as file:
        return file.read()


def check(path, content, size, crc32):
    if len(content) != size:
        raise ValueError(f"{path} has {len(content)} bytes instead of {size}")
    if zlib.crc32(content) != crc32:
        raise ValueError(f"{path} has wrong bytes")


def walk(root, files):
    start = time.perf_counter()
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            found[path] = os.stat(path).st_size
    seconds = time.perf_counter() - start
    if found != {file["path"]: file["size"] for file in files}:
        raise ValueError(f"{root} shows other names or sizes than were stored")
    return seconds, len(found), 0


def read(threads, files):
    paths = [file["path"] for file in files]
    # The threads are there before the clock starts.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(time.sleep, [0.001] * threads))
        start = time.perf_counter()
        contents = list(map(whole, paths)) if threads == 1 else list(pool.map(whole, paths))
        seconds = time.perf_counter() - start
    for file, content in zip(files, contents):
        check(content=content, **file)
    return seconds, len(files), sum(map(len, contents))


def columns(path, columns):
    start = time.perf_counter()
    contents = {}
    with open(path, "rb") as file:
        end = file.seek(-8, os.SEEK_END) + 8
        footer_bytes, magic = struct.unpack("<I4s", file.read(8))
        file.seek(end - 8 - footer_bytes)
        footer = json.loads(file.read(footer_bytes))
        for column in columns:
            place = footer[column["path"]]
            file.seek(place["offset"])
            contents[column["path"]] = file.read(place["size"])
    seconds = time.perf_counter() - start
    if magic != b"PAR1":
        raise ValueError(f"{path} does not end as it should")
    for column in columns:
        check(content=contents[column["path"]], **column)
    return seconds, 1, sum(map(len, contents.values()))


def main():
    steps = {"walk": walk, "read": read, "columns": columns}
    print(json.dumps(f"Python {platform.python_version()}"), flush=True)
    for line in sys.stdin:
        ((name, step),) = json.loads(line).items()
        try:
            seconds, files, size = steps[name](**step)
            answer = {"Ok": {"seconds": seconds, "files": files, "bytes": size}}
        except (OSError, ValueError, KeyError, struct.error) as error:
            answer = {"Err": str(error)}
        print(json.dumps(answer), flush=True)


main()
