"""Bytes at full speed, as workloads: many streams over budgets, interleaved runs, equal steps, and how
a stream begins."""

import prepare
from workloads import GIB, MIB, Phase, Subject, Workload, by_name

BUDGETS = ["256MiB", "512MiB", "1GiB", "4GiB", "16GiB"]
FOUR = {f"four-{number}": 512 * MIB for number in range(4)}
SIXTEEN = {f"sixteen-{number:02}": 128 * MIB for number in range(16)}
SIXTY_FOUR = {f"sixty-four-{number:02}": 32 * MIB for number in range(64)}
# The objects of each number of streams: of 2 GiB in all, but for the first.
STREAMS = {1: {"1GiB": GIB}, 4: FOUR, 16: SIXTEEN, 64: SIXTY_FOUR}
RUNS = {"key": "512MiB", "size": 512 * MIB}
LARGE = {"key": "4GiB", "size": 4 * GIB}
STEPS = 64
# Fresh memory beside the page cache's: for the daemon, which has 120 to 410 MiB whatever its budget is.
# What is touched in advance and not used goes back to the host while the sample is taken: with a GiB
# too much, one stream had 624 instead of 983 MB/s.
SPARE = 512 * MIB
# MiB of a step, and what touches.
STEPPED = [*((mib, "mmap") for mib in (1, 2, 4, 8, 16, 32, 64)), (8, "pread")]
SMALL_FOLDER = "small"
CLIENTS = ("boto3 get", "boto3 download", "s3fs/fsspec")


def streams(quick):
    """Streams: at any budget, in turns and in steps."""
    sizes = {key: size for objects in STREAMS.values() for key, size in objects.items()}
    sizes |= {what["key"]: what["size"] for what in (RUNS, LARGE)}
    local_folder = prepare.local_files(STREAMS[1])
    holds = [word for key, size in sizes.items() for word in ("--object", f"{key}={size}")]
    holds += ["--pattern", f"{SMALL_FOLDER}/{{10}}=1000"]
    copies = {key: size for key, size in sizes.items() if size <= GIB}
    return Subject(by_name(of_streams()), holds, local_folder=local_folder, copies=copies)


def of_streams():
    def one(name, rate, program, args, memory_bytes=GIB, **options):
        args = {"key": "1GiB", "size": GIB} | args
        return Workload([Phase(name, rate, program, args, memory_bytes)], **options)

    listing = {"what": "listing", "key": SMALL_FOLDER, "count": 10}
    return [
        one("first MiB", "ms", "sequential", {"bytes": MIB, "known": True}),
        one("first 64 MiB", "ms", "sequential", {"bytes": 64 * MIB, "known": True}),
        # The page cache, and the program's buffer.
        one("1 stream, read()", "MB", "whole", {}, memory_bytes=2 * GIB + SPARE, clients=CLIENTS),
        *(at_budget(count, budget) for count in STREAMS for budget in ["", *BUDGETS]),
        *interleaved(),
        *(steps(*stepped) for stepped in STEPPED),
        one("list ten files", "ms", "names", listing, memory_bytes=0, no_local=True),
    ]


def streams_name(count, budget=""):
    return f"{count} stream{'s' * (count > 1)}" + (budget and f", budget {budget}")


def at_budget(count, budget):
    """Processes that each read an object of their own by readinto of 1 MiB; others than ours at
    their own budgets."""
    args = {"keys": list(STREAMS[count])}
    size = sum(STREAMS[count].values())
    phase = Phase(streams_name(count, budget), "MB", "processes", args, size + SPARE)
    return of_budget([phase], budget, no_local=count > 1)


def of_budget(phases, budget, **options):
    return Workload(phases, options=["--memory-budget", budget] if budget else [],
                    only_ours=bool(budget), **options)


def interleaved_name(by, threads, slice_bytes):
    if threads == 1:
        return f"one run by {by}"
    told = f"{slice_bytes >> 10} KiB" if slice_bytes < MIB else f"{slice_bytes // MIB} MiB"
    return f"{threads} runs by {by}, slices of {told}"


# Threads and slice of all interleaved runs; not where a thread would have no slice.
INTERLEAVED = [(1, RUNS["size"])] + [
    (threads, slice_bytes) for threads in (2, 8, 64)
    for slice_bytes in (64 << 10, MIB, 4 * MIB, 64 * MIB) if threads * slice_bytes <= RUNS["size"]
]


def interleaved():
    for by in ("mmap", "pread"):
        for threads, slice_bytes in INTERLEAVED:
            args = RUNS | {"by": by, "threads": threads, "slice_bytes": slice_bytes}
            phase = Phase(interleaved_name(by, threads, slice_bytes), "MB", "interleaved", args,
                          RUNS["size"] + SPARE)
            yield Workload([phase], no_local=True)


def steps_name(mib, by):
    return f"{STEPS} steps of {mib} MiB, {by}"


def steps(mib, by):
    """Touches of single pages in equal steps; the object ends with the last one."""
    args = LARGE | {"size": STEPS * mib * MIB, "step": mib * MIB, "by": by}
    return Workload([Phase(steps_name(mib, by), "ms", "steps", args, SPARE)], no_local=True)
