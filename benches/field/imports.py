"""Start-ups, as workloads: Python imports packages that lie in the bucket."""

import prepare
from workloads import MIB, Phase, Subject, Workload, by_name

PACKAGES = ["numpy", "boto3"]
CLIENT = "import boto3; boto3.client('s3', 'us-east-1', aws_access_key_id='a', aws_secret_access_key='b')"
PROGRAMS = {"import numpy": "import numpy", "boto3 and a client": CLIENT}
# As pip leaves them, the bytecode is valid for a source of its own time only, and a bucket has
# another: each import reads both, and compiles. Unchecked, it reads the bytecode alone.
FOLDERS = {"": "site-packages", ", unchecked bytecode": "site-packages-unchecked"}


def imports(quick):
    """Start-ups: imports from a bucket, cold and again."""
    local_folder, trees = prepare.site_packages(PACKAGES, list(FOLDERS.values()))
    return Subject(by_name(of_imports()), [], local_folder=local_folder, trees=trees,
                   seconds=(300, 300, 30), quick_seconds=(60, 60, 10))


def name_of(program, bytecode="", again=False):
    return program + " again" * again + bytecode


def profiled(program):
    return f"{program}, by a profile"


def of_imports():
    for bytecode, folder in FOLDERS.items():
        yield Workload([
            Phase(name_of(program, bytecode, again), "s", "start",
                  {"key": folder, "code": code, "count": 1}, 256 * MIB)
            for again in (False, True) for program, code in PROGRAMS.items()
        ])
    for program, code in PROGRAMS.items():
        phase = Phase(profiled(program), "s", "start_by_profile",
                      {"key": FOLDERS[""], "code": code, "count": 1}, 256 * MIB)
        yield Workload([phase], only_ours=True)
