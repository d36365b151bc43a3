"""Child processes: what they used, and how they end whatever happens."""

import contextlib
import mmap
import os
import signal
import subprocess
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """User and system time of a process and of its children, also of those that have ended."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK + sum(map(cpu_seconds, children(pid)))


def peak_rss_bytes(pid):
    """The most memory that a process and each of its children had since they started."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 + sum(map(peak_rss_bytes, children(pid)))


def children(pid):
    """Some daemons serve in a child. Empty where the kernel does not tell."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def machine_cpu_seconds():
    """Time that the machine's cores were busy, and busy or not."""
    with open("/proc/stat") as file:
        user, nice, system, idle, iowait, irq, softirq, steal = map(
            int, file.readline().split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    return busy / TICK, (busy + idle + iowait) / TICK


def own_cpu_seconds():
    """What this process and those that it started and waited for have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def warm_memory(size):
    """Touches this much free memory and frees it, so that the next process finds it in place.

    In a virtual machine the first touch of memory that the host does not back costs 1 to 2 s of CPU
    time per GiB, and a kernel that reports free pages gives memory back to the host within seconds.
    Without this, a sample shows how long ago the memory was used. Never more than is
    free: the page cache, which holds the local disk's files, must not suffer. Huge pages, because
    touching what is warm already then takes 0.15 s per GiB instead of 0.6.
    """
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("MemFree:")) * 1024
    size = min(size, free - (512 << 20)) // (2 << 20) * (2 << 20)
    if size <= 0:
        return
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        memory[::4096] = b"x" * (size // 4096)


def start(command, stdin=subprocess.DEVNULL, **options):
    """Starts a process that Ctrl-C at the terminal does not reach: we end what we start."""
    return subprocess.Popen([str(word) for word in command], stdin=stdin, process_group=0, **options)


def end(process, gracefully=signal.SIGTERM, seconds=10):
    """Ends a process, by force when it does not listen."""
    if process.poll() is None:
        process.send_signal(gracefully)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def wait_until(condition, seconds, process):
    """Waits for something that `process` brings about."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}")
        if time.monotonic() > until:
            raise RuntimeError(f"{process.args[0]} was not ready after {seconds} s")
        time.sleep(0.02)
