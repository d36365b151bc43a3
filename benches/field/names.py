"""Names at scale, as workloads: listings, walks and cold paths."""

from workloads import Phase, Subject, Workload, by_name

MIB, GIB = 1 << 20, 1 << 30
# boto3 lists with its paginator, s3fs/fsspec with `ls` and `walk`.
CLIENTS = ("boto3", "s3fs/fsspec")

# A folder and the pattern of the keys in it, as devserver reads it.
PATTERNS = {
    "padded": "{400000}.jpg",
    "hex": "{hex:400000}",
    # 1,000 classes, and in each of them 400 numbers without leading zeros.
    "imagenet": "n{hex:1000}_{plain:400}.JPEG",
    "words": "{word:800}-{word:500}.txt",
    "tree": "{200}/{100}.jpg",
    "wide": "{10000}/{100}.jpg",
    "a/b/c/d": "{3}",
    "long": "{2000}.jpg",
    "huge": "{5000000}",
}
FILE_BYTES = 1000


def names(quick):
    """Names: lists of them, trees of them, and single ones."""
    holds = [word for folder, pattern in PATTERNS.items()
             for word in ("--pattern", f"{folder}/{pattern}={FILE_BYTES}")]
    # 400,000 names one page after the other are 400 × 40 ms, and up to 0.2 ms a name of a client's
    # own CPU time. A product that needs ten seconds is not measured again.
    return Subject(by_name(of_names()), holds, seconds=(120, 120, 10), quick_seconds=(30, 30, 5))


def of_names():
    def phase(name, what, folder, count, rate="s", memory_bytes=256 * MIB, **options):
        args = {"what": what, "key": folder, "count": count}
        return Phase(name, rate, "names", args, memory_bytes, **options)

    def one(*args, clients=(), only_ours=False, rounds=0, **options):
        return Workload([phase(*args, **options)], clients, no_local=True, only_ours=only_ours,
                        rounds=rounds)

    # The look of the names makes no difference to a product that lists page by page, so others list
    # only the first kind.
    return [
        Workload([
            phase("listdir, 400,000 padded", "listing", "padded", 400_000),
            phase("listdir again", "listing", "padded", 400_000, mounts_only=True),
        ], CLIENTS, no_local=True),
        one("first of 400,000", "first", "padded", 1, "ms", clients=("boto3",)),
        one("scandir and stat, 400,000", "scan", "padded", 400_000),
        one("listdir, 400,000 hexadecimal", "listing", "hex", 400_000, only_ours=True),
        one("listdir, 400,000 as ImageNet", "listing", "imagenet", 400_000, only_ours=True),
        one("listdir, 400,000 words", "listing", "words", 400_000, only_ours=True),
        one("walk, 20,000 files in 200", "walk", "tree", 20_000, clients=CLIENTS),
        one("walk, 1,000,000 files in 10,000", "walk", "wide", 1_000_000, only_ours=True, rounds=1,
            memory_bytes=GIB),
        one("stat four deep", "stat", "a/b/c/d/0", 1, "ms", clients=CLIENTS),
        Workload([
            phase("ls -l, 2,000", "long_listing", "long", 2000, "ms"),
            phase("100 missing names", "missing", "long", 100, "ms"),
        ], no_local=True),
        one("listdir, 5,000,000", "listing", "huge", 5_000_000, only_ours=True, rounds=1,
            memory_bytes=2 * GIB),
    ]
