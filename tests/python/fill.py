"""Fills a folder with what a data set looks like; the tests put it into the bucket as it is."""

import io
import os
import random
import struct
import sys
import tarfile
import zipfile

FOLDER = sys.argv[1]
RANDOM = random.Random(1)


def put(name, content):
    path = os.path.join(FOLDER, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def main():
    for label in range(5):
        for index in range(20):
            put(f"train/class{label}/{index:03}.jpg", RANDOM.randbytes(RANDOM.randrange(1, 50_000)))
    put("empty", b"")
    put("text/lines.txt", "".join(f"line {n} of it: ä€🦀\n" for n in range(10_000)).encode())
    put("names with spaces/and + % & é.bin", RANDOM.randbytes(1000))
    put("large.bin", RANDOM.randbytes(6_000_000 + 17))

    members = {f"shard/{n:04}.bin": RANDOM.randbytes(RANDOM.randrange(30_000)) for n in range(100)}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    put("packed/shard.zip", packed.getvalue())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    put("packed/shard.tar", packed.getvalue())

    # The format of numpy.save, version 1.0, written by hand: numpy need not be here.
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 500), }"
    header = header.ljust(128 - 10 - 1) + b"\n"
    floats = b"".join(struct.pack("<f", n % 1013) for n in range(500_000))
    put("array.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + floats)


main()
