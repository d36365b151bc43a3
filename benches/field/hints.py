"""Hints, as workloads: a first epoch by a data loader's workers, told and not told what comes next."""

import prepare
from workloads import Phase, Subject, Workload, by_name

PREFIX, BYTES = "train/", 110_000
WORKERS, BATCH, DEPTH = 4, 32, 512
LOADER = "a DataLoader's first epoch"
HINTED = "the same with hints"


def hints(quick):
    count = 4_000 if quick else 20_000
    family = prepare.of_family(PREFIX, count, BYTES)
    holds = ["--family", f"{PREFIX}:{count}:{BYTES}"]
    args = {"key": PREFIX.rstrip("/"), "workers": WORKERS, "batch": BATCH, "seed": 1, "count": count}
    memory = 3 * count * BYTES

    def one(name, depth, **options):
        phase = Phase(name, "file", "loader", args | {"depth": depth}, memory)
        return Workload([phase], **options)

    listed = [one(LOADER, 0), one(HINTED, DEPTH, only_ours=True)]
    local_folder = prepare.local_files(family)
    return Subject(by_name(listed), holds, local_folder=local_folder, copies=family,
                   seconds=(60, 180, 60))
