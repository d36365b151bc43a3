"""What is compared: mounts, Python's own clients, and a local disk.

Every product is opened for one measurement and closed after it, so that it begins with no cache.
An open product has `folder` (where a program finds the files, for clients none), `how` (for clients,
how reader.py gets bytes), `pid` (of a daemon, or none), and once it is closed `last_words` (the end
of a daemon's log).
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import prepare
import processes
import servers

OURS = "fasts3-mount"
BEFORE = "build before"
LOCAL = "local disk"
JUICEFS = "JuiceFS"


def memory_budget_bytes(options):
    """What fasts3-mount may hold with these options; without any a quarter of the machine's memory,
    at most 8 GiB."""
    units = {"MiB": 1 << 20, "GiB": 1 << 30}
    if "--memory-budget" in options:
        size = options[options.index("--memory-budget") + 1]
        return int(size[:-3]) * units[size[-3:]]
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4, 8 << 30)


def ours(server, mountpoint, scratch, options, binary=None):
    binary = binary or prepare.TARGET / "release" / "fasts3-mount"
    return [binary, servers.BUCKET, mountpoint, "--endpoint-url", server.endpoint,
            "--log-level", "warn", *options]


def s3fs(server, mountpoint, scratch, options):
    """Parts of 8 MiB, 16 at once; names believed for 15 minutes, which is its default. It keeps
    no cache on disk unless told to, but holds what an open file has read in a temporary one."""
    passwd = scratch / "passwd"
    keys = server.environment
    passwd.write_text(f"{keys['AWS_ACCESS_KEY_ID']}:{keys['AWS_SECRET_ACCESS_KEY']}\n")
    passwd.chmod(0o600)
    told = f"ro,url={server.endpoint},use_path_request_style,passwd_file={passwd},parallel_count=16"
    told += f",multipart_size=8,enable_noobj_cache,max_stat_cache_size=1000000,tmpdir={scratch}"
    return ["s3fs", servers.BUCKET, mountpoint, "-f", "-o", told]


def rclone(server, mountpoint, scratch, options):
    """No cache on disk; modification times from listings, so that it need not ask for each file. 16
    requests at once, which the versions of distributions do not know yet."""
    program = prepare.program("rclone")
    ahead = ["--vfs-read-chunk-size", "128M"]
    if Path(program).parent == prepare.VENV / "bin":
        ahead = ["--vfs-read-chunk-size", "4M", "--vfs-read-chunk-streams", "16"]
    remote = f":s3,provider=Other,env_auth=true,force_path_style=true:{servers.BUCKET}"
    return [program, "mount", remote, mountpoint, "--config", scratch / "none",
            "--s3-endpoint", server.endpoint, "--s3-no-check-bucket", "--read-only",
            "--use-server-modtime", "--no-checksum", "--buffer-size", "64M", *ahead,
            "--dir-cache-time", "1h", "--attr-timeout", "60s"]


def mountpoint_s3(server, mountpoint, scratch, options):
    return ["mount-s3", servers.BUCKET, mountpoint, "--foreground", "--read-only",
            "--endpoint-url", server.endpoint, "--force-path-style", "--metadata-ttl", "60"]


def goofys(server, mountpoint, scratch, options):
    return ["goofys", "-f", "-o", "ro", "--endpoint", server.endpoint, "--region", "us-east-1",
            "--stat-cache-ttl", "60s", "--type-cache-ttl", "60s", servers.BUCKET, mountpoint]


def geesefs(server, mountpoint, scratch, options):
    return ["geesefs", "-f", "-o", "ro", "--endpoint", server.endpoint, "--stat-cache-ttl", "60s",
            servers.BUCKET, mountpoint]


def juicefs(server, mountpoint, scratch, options):
    """What was written by write_copies, with an empty cache on disk."""
    return [prepare.program("juicefs"), "mount", "--no-usage-report", "--cache-dir", scratch / "cache",
            *options, _metadata(server), mountpoint]


def write_copies(server, sizes, trees):
    """Makes a JuiceFS in the server's bucket, and files in it: it cannot read a bucket as it is."""
    keys = server.environment
    command = [prepare.program("juicefs"), "format", "--no-agent", "--storage", "s3",
               "--bucket", f"{server.endpoint}/{servers.BUCKET}",
               "--access-key", keys["AWS_ACCESS_KEY_ID"], "--secret-key", keys["AWS_SECRET_ACCESS_KEY"],
               _metadata(server), "bench"]
    subprocess.run(command, env=server.environ(), check=True, timeout=60, capture_output=True)
    mount = Mount(juicefs, server, [])
    try:
        prepare.write_files(Path(mount.folder), sizes)
        for key, folder in trees.items():
            shutil.copytree(folder, Path(mount.folder) / key)
    finally:
        mount.close()


def _metadata(server):
    return f"sqlite3://{server.folder / 'juicefs.db'}"


MOUNTS = {OURS: ours, "s3fs": s3fs, "rclone": rclone, "mountpoint-s3": mountpoint_s3,
          "goofys": goofys, "geesefs": geesefs}
# Mounts of what was written through them.
COPIES = {JUICEFS: juicefs}
PROGRAMS = {"mountpoint-s3": "mount-s3", JUICEFS: "juicefs"}
CLIENTS = {"boto3 get": "get", "boto3 download": "download", "boto3": "boto3",
           "s3fs/fsspec": "fsspec", "runai, from S3": "runai"}


def compare_with(binary):
    """Makes another build of fasts3-mount a product of its own."""
    MOUNTS[BEFORE] = functools.partial(ours, binary=binary)


def available():
    """The products that this machine has."""
    mounts = [name for name in [*MOUNTS, *COPIES]
              if name in (OURS, BEFORE) or prepare.program(PROGRAMS.get(name, name))]
    return [*mounts, *CLIENTS, LOCAL]


def open_product(name, server, local_folder, workload):
    """Opens a product by its name; the workload's options are for ours alone."""
    if name in COPIES:
        return Mount(COPIES[name], server, ["--read-only"])
    if name in CLIENTS:
        return Client(CLIENTS[name])
    if name == LOCAL:
        return Local(local_folder)
    mounts = [Mount(MOUNTS[name], server, workload.options) for _ in range(workload.mounts)]
    return mounts[0] if len(mounts) == 1 else Several(mounts)


class Client:
    folder, pid, last_words, tool = "", None, "", ""

    def __init__(self, how):
        self.how = how

    def close(self, by_force=False):
        pass


class Local(Client):
    """Files in the page cache, the bound of what Python can do."""

    def __init__(self, folder):
        super().__init__("files")
        self.folder = str(folder)


class Mount:
    """A mounted bucket, in the foreground as our child."""

    how = "files"
    last_words = ""

    def __init__(self, command, server, options):
        self.scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=prepare.WORK))
        mountpoint = self.scratch / "mount"
        mountpoint.mkdir()
        self.folder = str(mountpoint)
        self.log = open(self.scratch / "log", "wb")
        self.process = None
        try:
            words = command(server, mountpoint, self.scratch, options)
            self.tool = str(words[0])
            self.process = processes.start(
                words, env=server.environ(), stdout=self.log, stderr=subprocess.STDOUT
            )
            processes.wait_until(self._is_mounted, 20, self.process)
        except BaseException:
            self.close(by_force=True)
            raise

    @property
    def pid(self):
        return self.process.pid

    def close(self, by_force=False):
        """Unmounts and ends the daemon. By force: kills it first, which also frees its readers."""
        if self.process and by_force:
            processes.end(self.process, signal.SIGKILL)
        for _ in range(2):
            if self._is_mounted():
                subprocess.run(["umount", "-l", self.folder], check=False, timeout=20)
        if self.process:
            processes.end(self.process)
        self.log.close()
        self.last_words = self.last_words or self._end_of_log()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _end_of_log(self):
        """Of a log that is gone, nothing: it may be closed more than once."""
        with contextlib.suppress(OSError):
            lines = (self.scratch / "log").read_text(errors="replace").split("\n")
            return next((line.strip()[:120] for line in reversed(lines) if line.strip()), "")
        return ""

    def _is_mounted(self):
        # Not by asking the mountpoint itself: a daemon that hangs would hang us.
        with open("/proc/self/mounts") as mounts:
            return any(line.split()[1] == self.folder for line in mounts)


class Several:
    """Mounts of the same bucket, as the folders 0, 1 … of one; nobody asks what their daemons use."""

    how, pid, tool = "files", None, ""

    def __init__(self, mounts):
        self.mounts = mounts
        self.folder = tempfile.mkdtemp(prefix="bench-", dir=prepare.WORK)
        for number, mount in enumerate(mounts):
            os.symlink(mount.folder, os.path.join(self.folder, str(number)))

    @property
    def last_words(self):
        return next((words for mount in self.mounts if (words := mount.last_words)), "")

    def close(self, by_force=False):
        for mount in self.mounts:
            mount.close(by_force)
        shutil.rmtree(self.folder, ignore_errors=True)
