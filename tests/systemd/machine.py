"""A Debian in a container, booted by its own systemd."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

# The package's dependencies and recommendations, Python for the documents' examples, and what the
# tests look with. Whatever a machine that runs Debian has besides is there without being named.
PACKAGES = ("systemd,systemd-sysv,dbus,fuse3,ca-certificates,procps,psmisc,kmod,man-db,tmux,"
            "python3-minimal")
TOOLS = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "dpkg-deb": "dpkg"}

# Bounds, not expectations: the machine may be busy with a build. systemd gives what does not end 90 s
# before it kills it, and as long again.
MAKING, BOOTING, ENDING = 600, 120, 240
LONG_FOR_AN_END = 30

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "xterm-256color",
    "DEBIAN_FRONTEND": "noninteractive",
}


class Impossible(Exception):
    """This machine cannot boot a container, whatever is installed."""


class Failed(Exception):
    """A command has failed, or what was waited for has not come."""


def prepare(say):
    """Installs what is missing, and finds out whether the tests can run at all."""
    if os.geteuid() != 0:
        raise Impossible("it needs root")
    for device in ("/dev/fuse", "/dev/autofs"):
        if not os.path.exists(device):
            raise Impossible(f"there is no {device}")
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        if not shutil.which("apt-get"):
            raise Impossible(f"there is no {', '.join(missing)}, and no apt-get to install it")
        say(f"installing {', '.join(missing)}")
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=MAKING)
        subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing],
                       check=True, timeout=MAKING, stdout=subprocess.DEVNULL)


def base(suite, folder, say):
    """An archive of a fresh Debian, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{suite}.tar"
    made_of = folder / f"{suite}.packages"
    if archive.exists() and made_of.exists() and made_of.read_text() == PACKAGES:
        return archive
    say(f"making a Debian {suite} from its packages")
    made_of.unlink(missing_ok=True)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", suite, archive]
    subprocess.run(command, check=True, timeout=MAKING, stdin=subprocess.DEVNULL)
    made_of.write_text(PACKAGES)
    return archive


class Machine:
    """One container. Leaving its context ends it and deletes all of it, whatever happens."""

    def __init__(self, archive, folder):
        self.archive, self.folder = archive, folder
        self.process = self.leader = None
        self.name = f"fasts3-mount-{os.getpid()}"
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            # Two containers at once would share their control groups.
            lock = stack.enter_context(open("/run/lock/fasts3-mount-systemd", "w"))
            wait_for("another run of these tests to end", lambda: is_free(lock), MAKING)
            place = tempfile.TemporaryDirectory(prefix="root-", dir=self.folder)
            self.root = Path(stack.enter_context(place))
            stack.callback(self.end)
            subprocess.run(["tar", "-xf", self.archive, "-C", self.root, "--numeric-owner"],
                           check=True, timeout=MAKING)
            self.root.chmod(0o755)
            self.boot()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *failure):
        self.stack.close()

    def boot(self):
        """Returns when systemd says that it has started everything, or has tried to."""
        command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}",
                   f"--machine={self.name}", "--private-users=no", "--bind=/dev/fuse",
                   "--bind=/dev/autofs", "--console=pipe", "--link-journal=no", "--resolv-conf=off",
                   "--timezone=off", "--register=no"]
        if not os.path.isdir("/run/systemd/system"):
            # No service manager here that could give it a scope.
            command.append("--keep-unit")
        self.log = self.folder / "nspawn.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, process_group=0)
        wait_for("the container to start", self._is_started, BOOTING)
        wait_for("systemd in the container", self._is_up, BOOTING)

    def _is_started(self):
        if self.process.poll() is not None:
            raise Impossible("systemd-nspawn ends with "
                             f"{self.process.returncode}: {self.log.read_text().strip()}")
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{child}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if numbers.split()[-1] == "1" and len(numbers.split()) > 2:
                    self.leader = child
                    return True
        return False

    def _is_up(self):
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def reboot(self, while_down=lambda: None):
        """As a user does it, while programs read."""
        old = self.leader
        self.run("systemctl", "reboot", check=False)

        def is_down():
            # Without a service manager of its own, nspawn leaves the next boot to us.
            return self.process.poll() is not None or not os.path.exists(f"/proc/{old}")
        with contextlib.suppress(Failed):
            wait_for("the machine to go down", is_down, LONG_FOR_AN_END)
        if not is_down():
            print(f"== the machine is not down after {LONG_FOR_AN_END} s:", *processes_of(old), sep="\n")
        wait_for("the machine to go down", is_down, ENDING)
        while_down()
        if not os.path.isdir("/run/systemd/system"):
            self.process.wait(ENDING)
            self.boot()
        else:
            wait_for("the container to start again", self._is_started, BOOTING)
            wait_for("systemd in the container", self._is_up, BOOTING)

    def end(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            # It has the container powered off, for which readers and mounts end.
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING)
        if self.process.poll() is None:
            # With its first process everything in the container ends.
            os.kill(int(self.leader), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(ENDING)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(ENDING)
        remove_control_groups()
        shutil.rmtree(f"/run/systemd/nspawn/propagate/{self.name}", ignore_errors=True)

    def command(self, *words, seconds=60):
        """The command that runs `words` in the container, for at most this long."""
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        enter = ["nsenter", "--target", self.leader, "--mount", "--uts", "--ipc", "--pid", "--net",
                 "--root", "--wd"]
        bound = ["timeout", "--foreground", "--kill-after=5", str(seconds)]
        return [*enter, "env", "-i", *environment, *bound, *(str(word) for word in words)]

    def run(self, *words, check=True, seconds=60):
        done = subprocess.run(self.command(*words, seconds=seconds), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace",
                              timeout=seconds + 15)
        if check and done.returncode != 0:
            raise Failed(f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def shell(self, script, **options):
        return self.run("bash", "-ec", script, **options)

    @contextlib.contextmanager
    def beside(self, *words, seconds=300):
        """A process that runs during the test and is killed after it."""
        with subprocess.Popen(self.command(*words, seconds=seconds), stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              process_group=0) as process:
            try:
                yield process
            finally:
                # The process itself is a child of nsenter's, in its group.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def starved(self, pid):
        """Has the kernel kill a process of the container for its memory (OOM): it may have 64 KiB more
        than it has. Gives a function that tells how many the kernel has killed so."""
        pid = self._outside(pid)
        controller = Path("/sys/fs/cgroup/memory")
        if controller.exists():
            # Version 1: what the process has already counts for the group that it had it in.
            group, limit, events = controller / self.name, "memory.limit_in_bytes", "memory.oom_control"
            group.mkdir()
            bytes_ = 64 << 10
        else:
            own = Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")
            group, limit, events = Path("/sys/fs/cgroup") / own, "memory.max", "memory.events"
            bytes_ = int((group / "memory.current").read_text()) + (64 << 10)
        try:
            (group / limit).write_text(str(bytes_))
            if controller.exists():
                (group / "cgroup.procs").write_text(pid)
            yield lambda: int(re.search(r"oom_kill (\d+)", (group / events).read_text())[1])
        finally:
            if controller.exists():
                group.rmdir()

    def _outside(self, pid):
        """The number by which this machine knows a process of the container."""
        space = os.readlink(f"/proc/{self.leader}/ns/pid")
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                known_as = re.search(r"NSpid:.*\t(\d+)\n", (folder / "status").read_text())[1]
                if known_as == pid and os.readlink(folder / "ns/pid") == space:
                    return folder.name
        raise Failed(f"there is no process {pid}")

    def write(self, path, text, mode=0o644):
        where = self.root / path.lstrip("/")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
        where.chmod(mode)


def is_free(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_control_groups():
    """Those that nspawn makes where no service manager gives it one. Only empty ones go."""
    if os.path.isdir("/run/systemd/system"):
        return
    for hierarchy in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        for name in ("payload", "supervisor"):
            for folder, _, _ in os.walk(f"{hierarchy}/{name}", topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def processes_of(leader):
    """A line for each thread of the container: what it is, and where in the kernel it waits."""
    with contextlib.suppress(OSError):
        inside = os.readlink(f"/proc/{leader}/ns/pid")
        for thread in Path("/proc").glob("[0-9]*/task/[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(thread / "ns/pid") == inside:
                    status = (thread / "status").read_text().splitlines()
                    told = [line for line in status if re.match("(Name|State|Pid|PPid):", line)]
                    where = (thread / "wchan").read_text()
                    yield " ".join(" ".join(told).split() + [where])


def wait_for(what, is_so, seconds):
    until = time.monotonic() + seconds
    while True:
        told = is_so()
        if told:
            return told
        if time.monotonic() > until:
            raise Failed(f"waited {seconds} s in vain for {what}")
        time.sleep(0.1)
