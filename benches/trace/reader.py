"""The program that is traced: reads a file by readinto, and tells when each read began and ended.

Called with a path, the bytes of a read and of all reads. Prints "ready", waits for a line, reads, and
prints a JSON list of [offset, bytes, begin, end] with times since 1970.
"""

import json
import os
import sys
import time


def main():
    name, piece, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    buffer, reads, at = bytearray(b"x") * piece, [], 0
    os.stat(name)  # the lookup of the name is not what is traced
    print("ready", flush=True)
    sys.stdin.readline()
    with open(name, "rb", buffering=0) as file:
        while at < most:
            begin = time.time()
            size = file.readinto(buffer)
            reads.append((at, size, begin, time.time()))
            if not size:
                break
            at += size
    print(json.dumps(reads))


main()
