"""What programs do, as arguments of reader.py, and the objects that they do it to."""

from dataclasses import dataclass, field

import products

MIB, GIB = 1 << 20, 1 << 30
FAMILY = ("train/", 2000, 110_000)
# So large that random reads stay random: in 1 GiB, thousands of them are next to each other. Too
# large for a local copy, small enough for s3fs, which wants room on the disk for the whole of it.
HUGE = {"key": "16GiB", "size": 16 * GIB}
CLIENTS = tuple(products.CLIENTS)
# Pillow reads a JPEG's head in steps of 16 KiB and then goes on by 32 KiB.
PIL = [16 << 10, 16 << 10, 32 << 10]


@dataclass
class Phase:
    """One run of reader.py; `rate` says what is counted: "MB", or what an item is, or "ms"."""

    name: str
    rate: str
    program: str
    args: dict


@dataclass
class Workload:
    """Phases that follow each other on one open product, the first of them cold."""

    phases: list
    clients: tuple = ()
    options: list = field(default_factory=list)  # of fasts3-mount
    only_ours: bool = False
    no_local: bool = False

    def takes(self, product):
        if self.only_ours:
            return product == products.OURS
        if self.no_local and product == products.LOCAL:
            return False
        return product in self.clients or product not in products.CLIENTS


def objects(quick):
    """Sizes by key of what the server computes and the local disk holds too."""
    sizes = {"128MB": 128_000_000, "1GiB": GIB}
    if not quick:
        sizes["4GiB"] = 4 * GIB
    sizes |= {f"quarter-{number}": 256 * MIB for number in range(4)}
    return sizes | {f"stream-{number:02}": (24 if quick else 64) * MIB for number in range(64)}


def workloads(quick, parquet, tensors):
    """All workloads, by the name of their first phase."""
    reads = 8_000 if quick else 20_000
    giant = {"key": "1GiB", "size": GIB}
    quarters = [f"quarter-{number}" for number in range(4)]
    streams = {"keys": [f"stream-{number:02}" for number in range(64)]}

    def one(name, rate, program, clients=(), **args):
        no_local = args.get("key") == HUGE["key"]
        return Workload([Phase(name, rate, program, args)], clients, no_local=no_local)

    def epochs(name, pieces):
        args = {"key": FAMILY[0].rstrip("/"), "threads": 16, "pieces": pieces}
        return Workload([
            Phase(f"{name}, epoch {number}", "file", "epoch", args | {"seed": number})
            for number in (1, 2)
        ])

    def scattered(length):
        args = HUGE | {"length": length << 10, "threads": 16, "reads": reads}
        return one(f"{length} KiB random, 16 threads", "read", "scattered", **args)

    def budget(size):
        phase = Phase(f"64 streams, budget {size}", "MB", "streams", streams)
        return Workload([phase], options=["--memory-budget", size], only_ours=True)

    again = [Phase(name, "MB", "whole", giant) for name in ("1 GiB read()", "1 GiB again")]
    listed = [
        one("128 MB read()", "MB", "whole", CLIENTS, key="128MB"),
        Workload(again, CLIENTS),
        one("first MiB", "ms", "first", ("boto3 get", "s3fs/fsspec"), key="1GiB", known=True),
        one("first MiB and its name", "ms", "first", key="1GiB"),
        one("4 processes, 4 files", "MB", "processes", ("boto3 get", "boto3 download"),
            keys=quarters),
        one("4 threads, one file", "MB", "regions", threads=4, **giant),
        scattered(128),
        scattered(4),
        one("mmap random faults", "fault", "faults", reads=reads, **HUGE),
        epochs("2,000 × 110 KB", []),
        epochs("2,000 × 110 KB as PIL", PIL),
        one("memmap rows, strided", "row", "rows", key="1GiB", row_bytes=64 << 10, every=16),
        one("Parquet, 4 of 16 columns", "MB", "columns", key=parquet.name,
            columns=["c01", "c05", "c09", "c13"]),
        one("safetensors", "MB", "tensors", key=tensors.name),
        budget("512MiB"),
        budget("8GiB"),
    ]
    if not quick:
        listed.insert(2, one("4 GiB read()", "MB", "whole", CLIENTS, key="4GiB"))
    return {workload.phases[0].name: workload for workload in listed}
