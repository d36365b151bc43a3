"""The package `fasts3` on a mount, and where there is none: package.py MOUNTPOINT LOCAL"""

import os
import pickle
import random
import sys
import time
import unittest

import fasts3

MOUNTPOINT, LOCAL = sys.argv[1:]


class Sampler:
    """As a DistributedSampler of PyTorch: all indices of its rank, anew for each epoch."""

    batch_size = None

    def __init__(self, length, rank=0, ranks=1):
        self.length, self.rank, self.ranks = length, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = list(range(self.length))
        random.Random(self.epoch).shuffle(order)
        return iter(order[self.rank :: self.ranks])

    def __len__(self):
        return self.length // self.ranks


class Batches(Sampler):
    batch_size = 3

    def __iter__(self):
        order = list(super().__iter__())
        for at in range(0, len(order), self.batch_size):
            yield order[at : at + self.batch_size]


class Package(unittest.TestCase):
    def setUp(self):
        self.told = []
        self.real = fasts3.prefetch
        fasts3.prefetch = self.note

    def tearDown(self):
        fasts3.prefetch = self.real

    def note(self, paths):
        self.told += [paths] if isinstance(paths, str) else paths
        return 1

    def test_yields_what_the_sampler_does_and_tells_it_in_that_order_depth_ahead(self):
        for depth in [1, 7, 64, 1000]:
            sampler = Sampler(100)
            ahead = fasts3.Ahead(sampler, [f"/{n}" for n in range(100)], depth=depth)
            self.told.clear()
            got = []
            for index in ahead:
                self.assertLessEqual(len(self.told) - len(got), depth + 1)
                self.assertGreaterEqual(len(self.told), min(100, len(got) + depth))
                got.append(index)
            self.assertEqual(got, list(sampler))
            self.assertEqual(self.told, [f"/{n}" for n in got])
            self.assertEqual(len(ahead), 100)

    def test_batches_and_several_paths_of_a_sample(self):
        sampler = Batches(10)
        paths = lambda n: [f"/image/{n}", f"/label/{n}"]
        self.assertEqual(list(fasts3.Ahead(sampler, paths, depth=4)), list(sampler))
        order = [n for batch in sampler for n in batch]
        self.assertEqual(self.told, [path for n in order for path in paths(n)])

    def test_everything_else_is_the_samplers(self):
        ahead = fasts3.Ahead(Batches(10), [f"/{n}" for n in range(10)])
        first = list(ahead)
        ahead.set_epoch(5)
        self.assertEqual((ahead.sampler.epoch, ahead.batch_size), (5, 3))
        self.assertNotEqual(list(ahead), first)
        self.assertEqual(list(pickle.loads(pickle.dumps(ahead))), list(ahead))
        with self.assertRaises(AttributeError):
            ahead.nothing_of_this_name
        with self.assertRaises(ValueError):
            fasts3.Ahead([], [], depth=0)

    def test_each_rank_tells_its_own(self):
        paths = [f"/{n}" for n in range(40)]
        for rank in range(4):
            list(fasts3.Ahead(Sampler(40, rank, 4), paths))
        self.assertEqual(sorted(self.told), sorted(paths))


class Prefetch(unittest.TestCase):
    def test_paths_of_a_mount_are_told(self):
        folder = os.path.join(MOUNTPOINT, "train/class1")
        paths = [os.path.join(folder, name) for name in os.listdir(folder)]
        self.assertEqual(fasts3.prefetch(paths), 20)
        self.assertEqual(fasts3.prefetch(iter([paths[0], os.fsencode(paths[1])])), 2)
        self.assertEqual(fasts3.prefetch(folder), 1)
        while int(os.getxattr(folder, "user.s3.prefetch").split()[0]):
            time.sleep(0.01)
        for path in paths:
            with open(path, "rb") as file, open(path.replace(MOUNTPOINT, LOCAL), "rb") as same:
                self.assertEqual(file.read(), same.read())

    def test_other_paths_are_no_error(self):
        wrong = [LOCAL, "/none/at/all", "a\0b", "x" * 5000, "", os.path.join(MOUNTPOINT, "none"),
                 os.path.join(MOUNTPOINT, "y" * 300), b"\xff", "\udcff", None, 1.5]
        self.assertEqual(fasts3.prefetch(wrong), 0)
        self.assertEqual(fasts3.prefetch([]), 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
