"""The package in a container with systemd, with the commands of docs/operations.md.

    make systemd                        # builds and packs what it needs, then this
    python3 tests/systemd --package target/debian/fasts3-mount_0.1.0-1_amd64.deb

Makes a Debian from its packages, kept in target/systemd; boots it with systemd-nspawn on the network
of this machine, installs the package, and goes through cases.py. Needs root, /dev/fuse and
/dev/autofs. Ends with 0 only if every case has passed.
"""

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path

import cases
import machine
import store

PROJECT = Path(__file__).resolve().parent.parent.parent
FOLDER = PROJECT / "target" / "systemd"


def arguments():
    parser = argparse.ArgumentParser(prog="tests/systemd", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="the .deb to install")
    parser.add_argument("--devserver", type=Path, default=PROJECT / "target/debug/devserver",
                        help="the S3 server [default: %(default)s]")
    parser.add_argument("--suite", default="bookworm", help="of Debian [default: %(default)s]")
    parser.add_argument("--only", metavar="WORD", action="append",
                        help="cases whose sentence contains this; may be repeated. The package is "
                             "installed in any case")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER",
                        help="where to write what `status`, `top` and the like show")
    return parser.parse_args()


def main():
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    chosen = [case for case in cases.ALL if case is cases.ALL[0] or not asked.only
              or any(word in sentence(case) for word in asked.only)]
    failed = []
    try:
        machine.prepare(say)
        archive = machine.base(asked.suite, FOLDER, say)
        with store.Store(asked.devserver) as server, machine.Machine(archive, FOLDER) as booted:
            say(f"booted Debian {asked.suite} {time.monotonic() - begin:.1f} s after the start")
            scene = cases.Scene(booted, server, PROJECT, asked.package, asked.pictures)
            for case in chosen:
                if not passes(case, scene):
                    failed.append(case)
    except machine.Impossible as reason:
        print(f"\nFAILED: systemd was NOT tested: this machine cannot boot a container: {reason}",
              flush=True)
        return 1
    took = time.monotonic() - begin
    passed = len(chosen) - len(failed)
    print(f"\n{passed} of {len(chosen)} cases passed in {took:.0f} s", flush=True)
    for case in failed:
        print(f"FAILED: {sentence(case)}", flush=True)
    return 1 if failed else 0


def passes(case, scene):
    start = time.monotonic()
    try:
        scene.calm()
        case(scene)
        print(f"ok     {time.monotonic() - start:5.1f} s  {sentence(case)}", flush=True)
        return True
    except Exception:
        print(f"FAILED {time.monotonic() - start:5.1f} s  {sentence(case)}", flush=True)
        traceback.print_exc(file=sys.stdout)
        print(scene.journal("-n", "60"), flush=True)
        return False


def sentence(case):
    return case.__name__.replace("_", " ")


def say(what):
    print(f"== {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
