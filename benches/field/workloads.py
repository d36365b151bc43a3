"""What programs do, as arguments of reader.py, and the objects that they do it to: reads here, and
names in names.py."""

from dataclasses import dataclass, field

import prepare
import products

MIB, GIB = 1 << 20, 1 << 30
FAMILY = ("train/", 2000, 110_000)
# Large enough that random reads stay random: in 1 GiB, thousands of them are next to each other. Too
# large for a local copy, small enough for s3fs, which wants room on the disk for the whole of it.
HUGE = {"key": "16GiB", "size": 16 * GIB}
CLIENTS = ("boto3 get", "boto3 download", "s3fs/fsspec")
# Pillow reads a JPEG's head in steps of 16 KiB and then goes on by 32 KiB.
PIL = [16 << 10, 16 << 10, 32 << 10]


@dataclass
class Phase:
    """One run of reader.py; `rate` says what is counted: "MB", or what an item is; or that the time
    is told, in "ms" or "s".

    `memory_bytes` is about what it needs of fresh memory: the kernel's page cache, the reader's
    buffers, and what a daemon keeps.
    """

    name: str
    rate: str
    program: str
    args: dict
    memory_bytes: int
    mounts_only: bool = False  # because clients keep nothing between two phases


@dataclass
class Subject:
    """Workloads that are told of together: one file of results, one section of the document."""

    workloads: dict  # by the name of their first phase
    holds: list  # devserver's flags for what is in the bucket
    uploads: tuple = ()
    local_folder: str = ""
    # Sizes by key of what a product that cannot read a bucket as it is holds too: JuiceFS.
    copies: dict = field(default_factory=dict)
    # Folders by key, of real files that every product holds.
    trees: dict = field(default_factory=dict)
    # A workload that counts what it gets done stops after the first of these seconds, a product
    # that is not done after the second is killed, and one that took the third is measured once.
    seconds: tuple = (20, 180, 90)
    quick_seconds: tuple = (4, 30, 5)

    def takes(self, workload, product):
        """Whether a product takes part in a workload, and holds what that reads."""
        held = {key.partition("/")[0] for key in self.copies} | set(self.trees)
        return workload.takes(product) and (product != products.JUICEFS or workload.keys() <= held)

    def copied(self, workload):
        """Those of the copies that a workload reads."""
        return {key: size for key, size in self.copies.items()
                if key.partition("/")[0] in workload.keys()}


@dataclass
class Workload:
    """Phases that follow each other on one open product, the first of them cold."""

    phases: list
    clients: tuple = ()
    options: list = field(default_factory=list)  # of fasts3-mount
    only_ours: bool = False
    no_local: bool = False
    rounds: int = 0  # at most, if not 0
    mounts: int = 1

    def takes(self, product):
        if self.only_ours:
            return product in (products.OURS, products.BEFORE)
        if self.no_local and product == products.LOCAL:
            return False
        return product in self.clients or product not in products.CLIENTS

    def keys(self):
        """Of the objects or folders that it reads."""
        return {key for phase in self.phases
                for key in phase.args.get("keys") or [phase.args["key"]]}

    def phases_of(self, product):
        """Those of its phases that mean something with this product."""
        return [phase for phase in self.phases
                if not (phase.mounts_only and product in products.CLIENTS)]


def objects(quick):
    """Sizes by key of what the server computes and the local disk holds too."""
    sizes = {"128MB": 128_000_000, "1GiB": GIB, "4GiB": 4 * GIB}
    sizes |= {f"quarter-{number}": 256 * MIB for number in range(4)}
    return sizes | {f"stream-{number:02}": stream_bytes(quick) for number in range(64)}


def stream_bytes(quick):
    return (24 if quick else 64) * MIB


def reads(quick):
    """Bytes: of large files and small ones, in order and at random."""
    sizes = objects(quick)
    family = prepare.of_family(*FAMILY)
    local_folder = prepare.local_files(sizes | family)
    uploads = prepare.table_and_tensors(local_folder, quick)
    sizes[HUGE["key"]] = HUGE["size"]
    holds = ["--family", ":".join(map(str, FAMILY))]
    holds += [word for key, size in sizes.items() for word in ("--object", f"{key}={size}")]
    copied = {key: size for key, size in sizes.items() if size <= GIB}
    return Subject(by_name(of_reads(quick, *uploads)), holds, uploads, local_folder, copied | family)


def by_name(listed):
    return {workload.phases[0].name: workload for workload in listed}


def of_reads(quick, parquet, tensors):
    reads = 6_000 if quick else 20_000
    giant = {"key": "1GiB", "size": GIB}
    quarters = [f"quarter-{number}" for number in range(4)]
    streams = {"keys": [f"stream-{number:02}" for number in range(64)]}

    def one(name, rate, program, memory_bytes, clients=(), rounds=0, **args):
        no_local = args.get("key") == HUGE["key"]
        phases = [Phase(name, rate, program, args, memory_bytes)]
        return Workload(phases, clients, no_local=no_local, rounds=rounds)

    def whole(name, key, size, **options):
        return one(name, "MB", "whole", 3 * size, CLIENTS, key=key, size=size, **options)

    def epochs(name, pieces):
        args = {"key": FAMILY[0].rstrip("/"), "threads": 16, "pieces": pieces}
        memory = 3 * FAMILY[1] * FAMILY[2]
        return Workload([
            Phase(f"{name}, epoch {number}", "file", "epoch", args | {"seed": number}, memory)
            for number in (1, 2)
        ])

    def scattered(length):
        args = HUGE | {"length": length << 10, "threads": 16, "reads": reads}
        # Fetched are blocks of 128 KiB, whatever was asked for.
        memory = (length + 128 << 10) * reads
        return one(f"{length} KiB random, 16 threads", "read", "scattered", memory, **args)

    def budget(size):
        memory = 64 * stream_bytes(quick)
        if size == "8GiB":
            memory *= 2
        phase = Phase(f"64 streams, budget {size}", "MB", "streams", streams, memory + 512 * MIB)
        return Workload([phase], options=["--memory-budget", size], only_ours=True)

    again = Workload([Phase("1 GiB read()", "MB", "whole", giant, 3 * GIB),
                      Phase("1 GiB again", "MB", "whole", giant, GIB)], CLIENTS)
    return [
        whole("128 MB read()", "128MB", 128_000_000),
        again,
        # Four times what every product has just shown, and 12 GiB of memory to make ready.
        whole("4 GiB read()", "4GiB", 4 * GIB, rounds=1 if quick else 0),
        one("first MiB", "ms", "first", 512 * MIB, ("boto3 get", "s3fs/fsspec"), key="1GiB",
            known=True),
        one("first MiB and its name", "ms", "first", 512 * MIB, key="1GiB"),
        one("4 processes, 4 files", "MB", "processes", 2 * GIB, ("boto3 get", "boto3 download"),
            keys=quarters),
        one("4 threads, one file", "MB", "regions", 2 * GIB, threads=4, **giant),
        scattered(128),
        scattered(4),
        one("mmap random faults", "fault", "faults", GIB, reads=reads, **HUGE),
        epochs("2,000 × 110 KB", []),
        epochs("2,000 × 110 KB as PIL", PIL),
        one("memmap rows, strided", "row", "rows", 2 * GIB, key="1GiB", row_bytes=64 << 10,
            every=16),
        one("Parquet, 4 of 16 columns", "MB", "columns", GIB, key=parquet.name,
            columns=["c01", "c05", "c09", "c13"]),
        one("safetensors", "MB", "tensors", GIB, key=tensors.name),
        budget("512MiB"),
        budget("8GiB"),
    ]
