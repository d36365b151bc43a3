"""Names at scale: listings, walks and cold paths, by mounts alone.

    python3 benches/field/names.py [loop|s3|flash] [PRODUCT …]

Each row is one product, opened cold: what it took, what the server was asked, CPU seconds of the
daemon, and the most memory it had. Needs the release binaries (`make bench` builds them).
"""

import subprocess
import sys

import prepare
import processes
import products
import servers

DIRECTORIES = 200
# 400,000 names whose beginnings are hexadecimal digits, and 200 directories of 100 files.
FAMILIES = [f"hex/{number:02x}:1563:1000" for number in range(256)]
FAMILIES += [f"walk/{number:03}/:100:1000" for number in range(DIRECTORIES)]
FAMILIES += ["a/b/c/d/:3:1000", "long/:2000:1000"]
PADDED = ("padded/", 400_000, 1000)

# What a program does in the folder `at`; prints what it did.
PROGRAMS = {
    "listdir, 400,000 padded": "print(len(os.listdir(at + '/padded')), 'names')",
    "the same again": "os.listdir(at + '/padded'); start(); os.listdir(at + '/padded')",
    "first entry": "next(os.scandir(at + '/padded'))",
    "listdir, 400,000 hexadecimal": "print(len(os.listdir(at + '/hex')), 'names')",
    "scandir and stat": "print(sum(e.stat().st_size > 0 for e in os.scandir(at + '/padded')))",
    "walk of 200 directories": "print(sum(len(files) for _, _, files in os.walk(at + '/walk')))",
    "stat four deep": "os.stat(at + '/a/b/c/d/0')",
    "ls -l of 2,000": "[os.stat(at + '/long/' + name) for name in os.listdir(at + '/long')]",
    "100 missing names": "os.listdir(at + '/long'); start()\n"
    "for n in range(100): assert not os.path.exists(f'{at}/long/missing-{n}')",
}
CLOCK = """
import os, sys, time
at, begin = sys.argv[1], 0
def start():
    global begin
    begin = time.perf_counter()
start()
exec(sys.argv[2])
print(f"{time.perf_counter() - begin:.3f}")
"""


def measure(name, program, server):
    product = products.open_product(name, server, "", [])
    by_force = True
    try:
        before, cpu = server.counts(), processes.cpu_seconds(product.pid)
        command = [sys.executable, "-c", CLOCK, product.folder, program]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=170)
        if ran.returncode:
            return "failed: " + ran.stderr.strip().rpartition("\n")[2]
        after, cpu = server.counts(), processes.cpu_seconds(product.pid) - cpu
        lists, heads = (after[kind] - before[kind] for kind in ("list", "head"))
        memory = processes.peak_rss_bytes(product.pid) >> 20
        by_force = False
        seconds = ran.stdout.split()[-1]
        return f"{seconds} s | {lists} | {heads} | {cpu:.2f} s | {memory} MiB"
    except subprocess.TimeoutExpired:
        return "more than 170 s"
    finally:
        product.close(by_force=by_force)


def main():
    network, *names = sys.argv[1:] or ["s3"]
    names = names or [name for name in products.available() if name in products.MOUNTS]
    prepare.WORK.mkdir(parents=True, exist_ok=True)
    families = [word for family in FAMILIES for word in ("--family", family)]
    servers.NETWORKS["names"] = servers.NETWORKS[network] + families
    server = servers.DevServer("names", {}, PADDED)
    print("| names | product | took | LISTs | HEADs | daemon CPU | peak RSS |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    try:
        for what, program in PROGRAMS.items():
            for name in names:
                print(f"| {what} | {name} | {measure(name, program, server)} |", flush=True)
    finally:
        server.close()


if __name__ == "__main__":
    main()
