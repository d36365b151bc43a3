"""Hints, as workloads: epochs of a data loader's workers, told and not told what comes next."""

import prepare
from streams import of_budget
from workloads import Phase, Subject, Workload, by_name

PREFIX, BYTES = "train/", 110_000
WORKERS, BATCH, DEPTH = 4, 32, 512
LOADER = "a DataLoader's first epoch"
HINTED = "the same with hints"
SMALL_BUDGET = "256MiB"
FIRST, AGAIN = f"hints, budget {SMALL_BUDGET}", f"hints, budget {SMALL_BUDGET}, second epoch"
RANKS = 4
DISTRIBUTED = f"DistributedSampler, {RANKS} mounts, hints"


def hints(quick):
    """Hints: what a data loader gains by telling the mount its order."""
    count = 4_000 if quick else 20_000
    family = prepare.of_family(PREFIX, count, BYTES)
    holds = ["--family", f"{PREFIX}:{count}:{BYTES}"]
    args = {"key": PREFIX.rstrip("/"), "workers": WORKERS, "batch": BATCH}
    memory = 3 * count * BYTES

    def phase(name, program="loader", **more):
        return Phase(name, "file", program, args | {"seed": 1} | more, memory)

    listed = [
        Workload([phase(LOADER, depth=0)]),
        Workload([phase(HINTED, depth=DEPTH, count=count)], only_ours=True),
        # The page cache has what the budget has not.
        of_budget([phase(FIRST, depth=DEPTH, count=count),
                   phase(AGAIN, depth=DEPTH, count=count, seed=2)], SMALL_BUDGET),
        Workload([phase(DISTRIBUTED, "ranks", depth=DEPTH, ranks=RANKS, workers=1, count=count)],
                 only_ours=True, mounts=RANKS),
    ]
    local_folder = prepare.local_files(family)
    return Subject(by_name(listed), holds, local_folder=local_folder, copies=family,
                   seconds=(60, 180, 60), quick_seconds=(20, 60, 20))
