"""What the objects of a soak hold."""

import random

MIB = 1 << 20


class Bytes:
    """What every version of every object holds: a slice of the same random bytes."""

    def __init__(self, longest):
        self.pool = random.Random(1).randbytes(longest + 8 * MIB)

    def of(self, key, version, size):
        start = random.Random(f"{key} {version}").randrange(8 * MIB)
        return start, start + size

    def body(self, key, version, size):
        start, end = self.of(key, version, size)
        return self.pool[start:end]

    def differs(self, key, version, size, at, got):
        """Whether these are not the object's bytes from `at` on."""
        start, end = self.of(key, version, size)
        return got != self.pool[start + at:min(start + at + len(got), end)]
