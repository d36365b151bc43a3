"""Reads a mount as Python programs do, and compares it with a folder on the local disk.

    read.py CASE MOUNT FOLDER

A case that cannot run here says so on its only line of output: `SKIPPED: why`.
"""

import glob
import hashlib
import mmap
import multiprocessing
import os
import random
import sys
import tarfile
import zipfile

CASE, MOUNT, FOLDER = sys.argv[1:]


def files():
    """Every file, as a path below the root."""
    found = [
        os.path.relpath(os.path.join(where, name), FOLDER)
        for where, _, names in os.walk(FOLDER)
        for name in names
    ]
    assert len(found) > 100, found
    return sorted(found)


def both(name):
    return os.path.join(MOUNT, name), os.path.join(FOLDER, name)


def content(path):
    with open(path, "rb") as file:
        return file.read()


def open_and_read():
    for name in files():
        mounted, local = both(name)
        expected = content(local)
        assert content(mounted) == expected, name
        with open(mounted, "rb", buffering=0) as file:
            raw = b"".join(iter(lambda file=file: file.read(70_000), b""))
        assert raw == expected, name
        assert len(expected) == os.path.getsize(mounted), name
    mounted, local = both("text/lines.txt")
    with open(mounted, encoding="utf-8") as a, open(local, encoding="utf-8") as b:
        assert list(a) == list(b)


def seek_and_read():
    where = random.Random(2)
    for name in ["large.bin", "text/lines.txt", "array.npy", "empty"]:
        mounted, local = both(name)
        expected = content(local)
        size = len(expected)
        for buffering in [0, -1, 1 << 20]:
            with open(mounted, "rb", buffering=buffering) as file:
                for _ in range(100):
                    offset = where.randrange(size + 10)
                    length = where.choice([1, 10, 4096, 100_000, 1_000_000])
                    assert file.seek(offset) == offset
                    got = read(file, length)
                    assert got == expected[offset : offset + length], (name, offset, length)
                assert file.seek(0, os.SEEK_END) == size
                assert file.read(10) == b""
                if size > 100:
                    file.seek(-100, os.SEEK_END)
                    assert read(file, 1000) == expected[-100:]
        descriptor = os.open(mounted, os.O_RDONLY)
        assert os.pread(descriptor, 100, size // 2) == expected[size // 2 :][:100]
        assert os.pread(descriptor, 100, size + 1) == b""
        os.close(descriptor)


def read(file, length):
    """All of it, for an unbuffered file may give less."""
    got = b""
    while len(got) < length:
        more = file.read(length - len(got))
        if not more:
            break
        got += more
    return got


def map_into_memory():
    where = random.Random(3)
    for name in files():
        mounted, local = both(name)
        expected = content(local)
        if not expected:
            continue
        with open(mounted, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                assert len(mapped) == len(expected)
                for _ in range(20):
                    offset = where.randrange(len(expected))
                    length = where.choice([1, 5000, 200_000])
                    assert mapped[offset : offset + length] == expected[offset : offset + length]
                assert mapped[:] == expected, name
            # A private mapping may be written to; other processes do not see it.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
                mapped[0] ^= 255
                assert mapped[0] == expected[0] ^ 255
        assert content(mounted) == expected


def scan_and_stat():
    for where, directories, names in os.walk(FOLDER):
        below = os.path.relpath(where, FOLDER)
        with os.scandir(os.path.join(MOUNT, below)) as entries:
            entries = {entry.name: entry for entry in entries}
        assert set(entries) == set(directories) | set(names), below
        for name, entry in entries.items():
            assert entry.is_dir() == (name in directories)
            assert entry.is_file() == (name in names)
            assert not entry.is_symlink()
            assert entry.inode() == entry.stat().st_ino == os.stat(entry.path).st_ino
            if name in names:
                assert entry.stat().st_size == os.path.getsize(os.path.join(where, name))
    assert not os.path.exists(os.path.join(MOUNT, "none"))
    assert not os.access(os.path.join(MOUNT, "large.bin"), os.W_OK)


def walk():
    def tree(root):
        found = []
        for where, directories, names in os.walk(root):
            directories.sort()
            found.append((os.path.relpath(where, root), list(directories), sorted(names)))
        return found

    assert tree(MOUNT) == tree(FOLDER)


def extended_attributes():
    for name in files():
        mounted, local = both(name)
        told = {each: os.getxattr(mounted, each) for each in os.listxattr(mounted)}
        etag = told.pop("user.s3.etag").decode()
        assert told == {"user.s3.key": name.encode()}, told
        # The server takes the sum of what is not large.
        md5 = hashlib.md5(content(local)).hexdigest()
        assert etag == md5 or os.path.getsize(local) > 64 << 10 and etag.endswith("-1"), etag
    assert any(os.path.getsize(both(name)[1]) <= 64 << 10 for name in files())
    mounted = os.path.join(MOUNT, files()[0])
    assert os.getxattr(mounted, "user.s3.storage-class") == b"STANDARD"
    assert os.getxattr(MOUNT, "user.s3.hidden") == b"0"


def glob_recursively():
    for pattern in ["**/*.jpg", "train/class[13]/0*.jpg", "**", "*/", "**/*é*", "no/such/*"]:
        mounted = sorted(glob.glob(pattern, root_dir=MOUNT, recursive=True))
        assert mounted == sorted(glob.glob(pattern, root_dir=FOLDER, recursive=True)), pattern
    assert len(glob.glob("**/*.jpg", root_dir=MOUNT, recursive=True)) == 100


def archives():
    with zipfile.ZipFile(os.path.join(MOUNT, "packed/shard.zip")) as archive:
        assert archive.testzip() is None
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(os.path.join(FOLDER, "packed/shard.zip")) as archive:
        assert members == {name: archive.read(name) for name in archive.namelist()}
    assert len(members) == 100
    for mode in ["r:", "r|", "r:*"]:  # by seeking, as a stream, by finding out
        with tarfile.open(os.path.join(MOUNT, "packed/shard.tar"), mode) as archive:
            unpacked = {info.name: archive.extractfile(info).read() for info in archive}
        assert unpacked == members, mode


def numpy():
    try:
        import numpy
    except ImportError:
        print("SKIPPED: there is no numpy")
        return
    mounted, local = both("array.npy")
    expected = numpy.load(local)
    assert expected.shape == (1000, 500)
    assert numpy.array_equal(numpy.load(mounted), expected)
    mapped = numpy.load(mounted, mmap_mode="r")
    assert numpy.array_equal(mapped[700:710, 3], expected[700:710, 3])
    assert numpy.array_equal(mapped, expected)
    raw = numpy.memmap(mounted, dtype="<f4", mode="r", offset=128, shape=(1000, 500))
    assert numpy.array_equal(raw[::-1], expected[::-1])
    assert numpy.array_equal(numpy.fromfile(mounted, "<f4", offset=128), expected.ravel())


def digest(path):
    return hashlib.sha256(content(path)).hexdigest()


def read_in_processes():
    mounted, local = zip(*map(both, files()))
    expected = [digest(path) for path in local]
    for method in ["fork", "spawn"]:
        with multiprocessing.get_context(method).Pool(4) as pool:
            assert pool.map(digest, mounted, chunksize=7) == expected, method
            assert pool.map(digest, mounted, chunksize=3) == expected, method


if __name__ == "__main__":
    globals()[CASE]()
