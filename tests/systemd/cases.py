"""What an operator does and what happens then: a sentence a case, in the order in which they run.

Each begins with nothing mounted, no unit running and a store that works (`Scene.calm`).
"""

import contextlib
import hashlib
import json
import re
import shutil
import time
import urllib.error
import urllib.request

from machine import Failed, wait_for

ALL = []
SETTINGS = "/etc/fasts3-mount"
UNITS = "/etc/systemd/system"
FSTAB = "# <file system> <mount point> <type> <options> <dump> <pass>\n"
# The unit starts again a second after a failure, and the machine may be busy.
RESTART = 60


def case(function):
    ALL.append(function)
    return function


class Scene:
    """The machine, the store, and what is done to them again and again."""

    def __init__(self, machine, store, project, package, pictures):
        self.machine, self.store = machine, store
        self.project, self.package, self.pictures = project, package, pictures
        self.cursor = ""
        self.run, self.shell, self.write = machine.run, machine.shell, machine.write

    def calm(self):
        """As every case finds it."""
        self.store.tell("clear")
        self.shell("""
            systemctl stop 'fasts3-mount@*.service' 'mnt-*.automount' 'mnt-*.mount' 2>/dev/null || true
            systemctl disable --quiet 'fasts3-mount@data' 2>/dev/null || true
            for mount in $(findmnt -rno TARGET -t fuse.fasts3,autofs | grep ^/mnt/); do
                umount -l "$(printf %b "$mount")"
            done
            rm -rf /etc/systemd/system/fasts3-mount@*.d
        """)
        self.write("/etc/fstab", FSTAB)
        self.shell("systemctl daemon-reload; systemctl reset-failed; mkdir -p /mnt/data")
        assert self.mounts() == [], self.mounts()
        told = self.run("journalctl", "-q", "-n", "1", "--show-cursor").stdout
        self.cursor = told.rpartition("-- cursor: ")[2].strip()

    # Units.

    def settings(self, name="data", **changed):
        """Writes its file. None leaves a line out."""
        lines = {
            "BUCKET": "s3://data/datasets",
            "MOUNTPOINT": f"/mnt/{name}",
            "OPTIONS": "--allow-other",
            "FASTS3_ENDPOINT_URL": self.store.endpoint,
            **self.store.environment,
            **changed,
        }
        text = "".join(f"{name}={value}\n" for name, value in lines.items() if value is not None)
        self.write(f"{SETTINGS}/{name}.env", text, 0o600)

    def drop_in(self, text):
        self.write(f"{UNITS}/fasts3-mount@data.service.d/override.conf", text)
        self.run("systemctl", "daemon-reload")

    def start(self, name="data", **changed):
        self.settings(name, **changed)
        self.run("systemctl", "start", f"fasts3-mount@{name}", seconds=90)

    def show(self, *properties, name="data"):
        """Properties of the unit, in the order asked for."""
        words = [f"--property={','.join(properties)}", f"fasts3-mount@{name}.service"]
        lines = self.run("systemctl", "show", *words).stdout.splitlines()
        told = dict(line.partition("=")[::2] for line in lines)
        return [told[name] for name in properties]

    def pid(self):
        return self.show("MainPID")[0]

    def is_active(self):
        return self.show("ActiveState") == ["active"]

    def status(self):
        return self.show("StatusText")[0]

    # Mounts.

    def mounts(self):
        """(source, target) of ours, dead ones too."""
        listed = self.run("findmnt", "-rno", "SOURCE,TARGET", "-t", "fuse.fasts3", check=False).stdout
        return [tuple(line.split(" ")) for line in listed.splitlines()]

    def is_mounted(self, path="/mnt/data"):
        return path in (target for _, target in self.mounts())

    def daemons(self):
        return self.run("pgrep", "-x", "fasts3-mount", check=False).stdout.split()

    def reads_right(self, key="train/cat/000.jpg", folder="/mnt/data"):
        """Through the mount, by Python with plain open(), what the store holds."""
        script = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
        read = self.run("python3", "-c", script, f"{folder}/{key}").stdout.strip()
        assert read == self.store.digest(f"datasets/{key}"), f"{folder}/{key}: wrong bytes"

    @contextlib.contextmanager
    def reader(self, path="/mnt/data/big.bin"):
        """A program in the middle of a large file, for 50 s and more, be the machine as fast as it may."""
        slowly = ("import sys, time\nwith open(sys.argv[1], 'rb', buffering=0) as file:\n"
                  "    while file.read(1 << 20): time.sleep(0.05)")
        with self.machine.beside("python3", "-c", slowly, path) as process:
            wait_for("a reader", lambda: self.holders(path), 30)
            assert process.poll() is None
            yield process

    @contextlib.contextmanager
    def whole_reader(self, key="weights.bin", piece=1 << 19):
        """A program that reads all of a file, in 6 s and more, and must get the right bytes."""
        slowly = ("import hashlib, sys, time\nsum_ = hashlib.sha256()\n"
                  "with open(sys.argv[1], 'rb', buffering=0) as file:\n"
                  "    while piece := file.read(int(sys.argv[2])):\n"
                  "        sum_.update(piece); time.sleep(0.1)\n"
                  "open('/run/sum', 'w').write(sum_.hexdigest())")
        path = f"/mnt/data/{key}"
        with self.machine.beside("python3", "-c", slowly, path, piece) as process:
            wait_for("a reader", lambda: self.holders(path), 30)
            yield process
            assert process.wait(120) == 0, "an error"
        read = self.run("cat", "/run/sum").stdout
        assert read == self.store.digest(f"datasets/{key}"), f"{key}: wrong bytes"

    def holders(self, path):
        """Processes that have the file open."""
        return self.run("fuser", path, check=False).stdout.split()

    # The log and the documents.

    def journal(self, *words):
        """What was logged in this case."""
        # Not --after-cursor, which with a filter leaves out the first line behind it.
        since = f"--cursor={self.cursor}"
        return self.run("journalctl", "-q", "--output=cat", since, *words, check=False).stdout

    def log(self, name="data"):
        return self.journal("-u", f"fasts3-mount@{name}")

    def documented(self, document, heading, block=0):
        """The commands that stand below a heading, about this store."""
        text = (self.project / document).read_text()
        section = re.split(rf"(?m)^#+ {re.escape(heading)}$", text)[1]
        section = re.split(r"(?m)^#+ ", section)[0]
        found = re.findall(r"(?m)(?:^    .*\n(?:\n(?=    ))?)+", section)
        commands = re.sub(r"(?m)^    ", "", found[block])
        return commands.replace("my-bucket", "data")

    def keys(self, first="FASTS3_ENDPOINT_URL"):
        lines = {first: self.store.endpoint, **self.store.environment}
        return "".join(f"{name}={value}\n" for name, value in lines.items())

    def picture(self, name, text):
        if self.pictures:
            self.pictures.mkdir(parents=True, exist_ok=True)
            (self.pictures / f"{name}.txt").write_text(text)


# The package.


@case
def the_package_is_installed_by_the_documented_command(s):
    shutil.copy(s.package, s.machine.root / "root")
    command = s.documented("docs/operations.md", "Install").splitlines()[-1]
    assert command.startswith("apt install ./"), command
    s.shell(f"cd /root && {command}", seconds=120)
    assert s.run("fasts3-mount", "--version").stdout.startswith("fasts3-mount ")
    assert s.run("stat", "-c", "%a", SETTINGS).stdout == "750\n"
    assert s.run("readlink", "-f", "/sbin/mount.fasts3").stdout == "/usr/bin/fasts3-mount\n"
    s.run("systemd-analyze", "verify", "fasts3-mount@data.service")
    for page in ("1 fasts3-mount", "8 mount.fasts3"):
        s.run("man", "--where", *page.split())
    assert s.daemons() == [] and s.run("systemctl", "--failed", "-q").stdout == ""


@case
def the_documented_steps_give_a_mount_that_python_reads(s):
    steps = s.documented("docs/operations.md", "A unit")
    assert steps.count("EOF\n") == 2, steps
    head, _, tail = steps.rpartition("EOF\n")
    s.shell(f"{head}{s.keys()}EOF\n{tail}", seconds=90)
    assert s.show("ActiveState", "SubState", "UnitFileState") == ["active", "running", "enabled"]
    assert s.mounts() == [("s3://data/datasets/", "/mnt/data")], s.mounts()

    readme = (s.project / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    # The lines of the README's program that need nothing but Python.
    program = "".join(line for line in program.splitlines(True) if "np." not in line)
    program = program.replace("import os, numpy as np", "import os") + "print(len(image))\n"
    program = program.replace("cat/0001.jpg", "cat/001.jpg")
    assert s.run("python3", "-c", program).stdout == "110000\n"
    for key in ("train/cat/000.jpg", "train/cat/199.jpg", "weights.bin"):
        s.reads_right(key)
    # An ordinary user, too: --allow-other.
    s.run("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "cmp",
          "/mnt/data/train/cat/001.jpg", "/mnt/data/train/cat/001.jpg")


# The promises of a unit.


@case
def started_means_mounted_and_until_then_the_status_says_what_is_waited_for(s):
    s.store.tell("add list * delay+3s times=1")
    s.settings()
    seen = []
    with s.machine.beside("systemctl", "start", "fasts3-mount@data") as starting:
        def is_over():
            # In this order: what is active now was mounted before.
            state, text = s.show("ActiveState", "StatusText")
            seen.append((state, text, s.is_mounted()))
            return starting.poll() is not None
        wait_for("the start", is_over, 60)
        assert starting.returncode == 0
    assert ("activating", "asking for s3://data/datasets/", False) in seen, seen
    assert all(mounted for state, _, mounted in seen if state == "active"), seen
    assert s.is_active() and s.is_mounted()
    assert s.status() == "mounted s3://data/datasets/ on /mnt/data", s.status()


@case
def the_status_shows_the_throughput_while_somebody_reads_and_totals_afterwards(s):
    s.start()
    with s.reader():
        rates = r"reading: [\d.]+ MB/s to programs, [\d.]+ MB/s from the store, \d+ GETs/s"
        told = wait_for("rates", lambda: re.fullmatch(rates, s.status()), 30)
        s.picture("systemctl-status", s.run("systemctl", "status", "--no-pager", "--full",
                                            "fasts3-mount@data").stdout)
        assert float(re.search(r"[\d.]+", told[0])[0]) > 0, told
    wait_for("totals", lambda: re.fullmatch(r"idle; \d+ MB read and .* since the mount", s.status()), 30)


@case
def what_a_restart_does_not_cure_fails_the_start_once_with_its_code_and_reason(s):
    for changed, code, says in [
        ({"BUCKET": "missing"}, 66, "there is no bucket missing"),
        ({"BUCKET": ""}, 64, "not a bucket name"),
        ({"OPTIONS": "--frobnicate"}, 64, "--frobnicate"),
        ({"MOUNTPOINT": "/mnt/nowhere"}, 72, "mkdir -p /mnt/nowhere"),
        ({"MOUNTPOINT": "/etc/hostname"}, 72, "is not a directory"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 77, "access to bucket data is denied"),
    ]:
        s.settings(**changed)
        failed = s.run("systemctl", "start", "fasts3-mount@data", check=False)
        assert failed.returncode != 0, changed
        # Not "activating (auto-restart)".
        told = s.show("ActiveState", "SubState", "ExecMainStatus", "NRestarts")
        assert told == ["failed", "failed", str(code), "0"], (changed, told)
        # The code 64 comes before the first message to systemd; the log has it.
        assert says in s.status() + s.log(), (changed, s.status())
        assert s.mounts() == [] and s.daemons() == []
        s.run("systemctl", "reset-failed", "fasts3-mount@data")


@case
def without_its_settings_a_unit_fails_at_once_and_says_which_file_is_missing(s):
    failed = s.run("systemctl", "start", "fasts3-mount@nothing", check=False)
    assert failed.returncode != 0
    told = s.show("ActiveState", "SubState", "NRestarts", name="nothing")
    assert told in (["failed", "failed", "0"], ["inactive", "dead", "0"]), told
    says = "Assertion failed for fasts3-mount@nothing.service - S3 mount of /etc/fasts3-mount/nothing.env"
    assert says in s.log("nothing"), s.log("nothing")


@case
def a_variable_without_a_value_counts_as_not_set(s):
    help_text = s.run("fasts3-mount", "--help").stdout
    names = sorted(set(re.findall(r"\[env: (FASTS3_\w+)=", help_text)))
    assert len(names) > 20, names
    blank = dict.fromkeys(names, "") | {"AWS_PROFILE": "", "AWS_SESSION_TOKEN": "", "OPTIONS": ""}
    s.start(**blank | {"FASTS3_ENDPOINT_URL": s.store.endpoint})
    s.reads_right()


@case
def a_store_that_is_away_is_asked_again_until_it_is_back(s):
    s.store.tell("add all * hangup")
    s.settings()
    failed = s.run("systemctl", "start", "fasts3-mount@data", check=False)
    assert failed.returncode != 0
    told = s.show("ActiveState", "SubState", "ExecMainStatus")
    assert told == ["activating", "auto-restart", "69"], told
    assert "is failing: the connection broke" in s.status(), s.status()
    s.store.tell("clear")
    wait_for("the next try", lambda: s.is_active() and s.is_mounted(), RESTART)
    s.reads_right()


@case
def a_daemon_that_is_killed_is_followed_by_another_and_readers_wait(s):
    s.start()
    with s.whole_reader(piece=1 << 18):
        for restarts in ("1", "2"):
            old = s.pid()
            s.run("kill", "-KILL", old)
            wait_for("another daemon", lambda: s.is_active() and s.pid() not in (old, "0"), RESTART)
            assert s.show("NRestarts") == [restarts]
    assert s.mounts() == [("s3://data/datasets/", "/mnt/data")], s.mounts()
    assert s.log().count("taking over the mount on /mnt/data") == 2, s.log()
    s.reads_right()


@case
def a_daemon_that_is_killed_for_its_memory_is_followed_by_another(s):
    s.start()
    with s.whole_reader():
        old = s.pid()
        with s.machine.starved(old) as deaths:
            wait_for("its end", lambda: s.pid() != old, RESTART)
            assert deaths() == 1
        wait_for("another daemon", lambda: s.is_active() and s.pid() not in (old, "0"), RESTART)
    assert s.log().count("taking over the mount on /mnt/data") == 1, s.log()


@case
def a_restart_takes_new_options_and_readers_wait(s):
    s.start()
    with s.whole_reader():
        s.settings(OPTIONS="--allow-other --metadata-ttl 5m")
        old = s.pid()
        s.run("systemctl", "restart", "fasts3-mount@data")
        assert s.pid() not in (old, "0")
    assert "SIGQUIT: the mount stays for the next daemon" in s.log(), s.log()
    assert "metadata_ttl=5m" in s.log(), s.log()
    # A stop unmounts, as ever.
    s.run("systemctl", "stop", "fasts3-mount@data")
    assert s.mounts() == [] and s.daemons() == []


@case
def a_daemon_that_dies_again_and_again_fails_the_unit_and_readers_get_an_error(s):
    s.start()
    with s.reader() as reader:
        def is_given_up():
            # While it starts, too.
            s.run("systemctl", "kill", "--kill-who=main", "-s", "KILL", "fasts3-mount@data", check=False)
            return s.show("ActiveState") == ["failed"]
        wait_for("the end of it", is_given_up, 120)
        assert reader.wait(30) != 0
    assert "start request repeated too quickly" in s.log().lower(), s.log()
    s.run("systemctl", "reset-failed", "fasts3-mount@data")
    s.run("systemctl", "start", "fasts3-mount@data")
    s.reads_right()


@case
def a_stop_between_two_daemons_ends_the_mount(s):
    s.drop_in("[Service]\nRestartSec=10min\n")
    s.start()
    with s.reader() as reader:
        s.run("kill", "-KILL", s.pid())
        wait_for("nobody to serve", lambda: s.show("SubState") == ["auto-restart"], 30)
        assert reader.poll() is None
        s.run("systemctl", "stop", "fasts3-mount@data")
        assert reader.wait(30) != 0
    s.run("systemctl", "start", "fasts3-mount@data")
    s.reads_right()


@case
def a_daemon_that_is_stuck_is_replaced_by_the_watchdog_and_readers_wait(s):
    s.drop_in("[Service]\nWatchdogSec=4\n")
    s.start()
    with s.whole_reader():
        old = s.pid()
        s.run("kill", "-STOP", old)
        wait_for("another daemon", lambda: s.is_active() and s.pid() not in (old, "0"), RESTART)
    assert "watchdog" in s.journal("-u", "fasts3-mount@data").lower()
    assert "taking over the mount on /mnt/data" in s.log(), s.log()


@case
def an_outage_of_the_store_is_no_reason_to_restart(s):
    s.drop_in("[Service]\nWatchdogSec=3\n")
    s.start()
    pid = s.pid()
    s.store.tell("add all * silent")
    with s.machine.beside("cat", "/mnt/data/weights.bin"):
        # Twice as long as the watchdog waits.
        time.sleep(7)
        assert s.show("ActiveState", "MainPID", "NRestarts") == ["active", pid, "0"]
        s.store.tell("clear")
        s.store.tell("cut")
    s.reads_right()


@case
def a_stop_in_the_middle_of_reads_is_clean(s):
    s.start()
    with s.machine.beside("bash", "-c", "exec 3</mnt/data/weights.bin; sleep 200"):
        wait_for("an open file", lambda: s.holders("/mnt/data/weights.bin"), 30)
        with s.reader() as reader:
            s.run("systemctl", "stop", "fasts3-mount@data", seconds=30)
            assert s.show("ActiveState", "Result", "ExecMainStatus") == ["inactive", "success", "0"]
            assert s.mounts() == [] and s.daemons() == []
            # A reader gets an error, not an endless wait.
            assert reader.wait(30) != 0
    log = s.log()
    assert "the mount is busy: unmounting lazily" in log, log
    totals = re.findall(r"unmounted /mnt/data .*bytes_served=(\d+)", log)
    assert int(totals[-1]) > 1_000_000, log
    s.start()
    s.reads_right()


@case
def a_reload_has_all_names_asked_for_anew_and_disturbs_no_reader(s):
    s.start(FASTS3_METADATA_TTL="indefinite")
    pid = s.pid()
    s.run("ls", "/mnt/data/train/cat")
    before = s.store.lists()
    s.run("ls", "/mnt/data/train/cat")
    assert s.store.lists() == before
    with s.reader() as reader:
        s.run("systemctl", "reload", "fasts3-mount@data")
        wait_for("the log", lambda: "SIGHUP: dropped all cached names" in s.log(), 30)
        # The kernel believes its directory pages for as long as it was told before Linux 6.16.
        s.run("find", "/mnt/data", "-name", "nothing")
        wait_for("another listing", lambda: s.store.lists() > before, 30)
        assert reader.poll() is None
    assert s.pid() == pid


@case
def credentials_may_be_given_to_the_unit_alone(s):
    drop_in = s.documented("docs/operations.md", "Credentials").partition("\n\n")[2]
    assert drop_in.startswith("[Service]\n"), drop_in
    s.drop_in(drop_in)
    keys = s.store.environment
    s.write(f"{SETTINGS}/data.credentials", "[default]\n"
            f"aws_access_key_id={keys['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key={keys['AWS_SECRET_ACCESS_KEY']}\n", 0o600)
    s.start(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    # It has not put the mount where only the unit sees it.
    assert s.is_mounted() and "process 1 does not see" not in s.log()
    s.reads_right()
    s.run("systemctl", "stop", "fasts3-mount@data")
    s.run("systemd-creds", "encrypt", "--name=aws", f"{SETTINGS}/data.credentials",
          f"{SETTINGS}/data.encrypted")
    s.run("rm", f"{SETTINGS}/data.credentials")
    s.drop_in(drop_in.replace("LoadCredential=", "LoadCredentialEncrypted=")
              .replace("data.credentials", "data.encrypted"))
    s.run("systemctl", "start", "fasts3-mount@data", seconds=90)
    s.reads_right()


@case
def a_unit_with_a_mount_namespace_of_its_own_says_that_nobody_sees_its_mount(s):
    s.drop_in("[Service]\nPrivateTmp=yes\n")
    s.start()
    assert not s.is_mounted()
    assert s.status().endswith(", but not for the host"), s.status()
    assert "in a mount namespace that process 1 does not see" in s.log()


@case
def two_units_mount_two_folders_and_not_the_same_one(s):
    s.run("mkdir", "-p", "/mnt/other")
    s.start()
    s.start("other", BUCKET="data/other", MOUNTPOINT="/mnt/other")
    assert sorted(s.mounts()) == [("s3://data/datasets/", "/mnt/data"),
                                  ("s3://data/other/", "/mnt/other")]
    assert s.run("ls", "/mnt/other").stdout == "file\n"
    s.run("systemctl", "stop", "fasts3-mount@other")
    s.settings("other", MOUNTPOINT="/mnt/data")
    failed = s.run("systemctl", "start", "fasts3-mount@other", check=False)
    assert failed.returncode != 0 and s.show("ExecMainStatus", name="other") == ["73"]
    assert "in use: a fuse.fasts3 file system" in s.log("other")
    s.run("systemctl", "stop", "fasts3-mount@other")
    s.reads_right()


@case
def a_mountpoint_may_have_spaces_in_its_name(s):
    s.run("mkdir", "-p", "/mnt/my data")
    s.start(MOUNTPOINT='"/mnt/my data"')
    s.reads_right(folder="/mnt/my data")
    s.run("systemctl", "stop", "fasts3-mount@data")


# Looking inside.


@case
def a_running_mount_is_looked_into_by_status_top_metrics_and_the_log(s):
    s.start(FASTS3_METRICS_LISTEN="0", FASTS3_IO_TIMEOUT="2s")
    told = json.loads(s.run("fasts3-mount", "status", "/mnt/data", "--json").stdout)
    address = told["settings"]["metrics"]
    with s.reader():
        s.run("tmux", "new-session", "-d", "-x", "120", "-y", "34", "fasts3-mount top /mnt/data")
        try:
            def screen():
                shown = s.run("tmux", "capture-pane", "-p", check=False).stdout
                # Not the first look, which is of a moment only.
                rates = re.search(r"from the store +[\d.]+ MB/s +to programs +[\d.]+ MB/s", shown)
                whole = re.search(r"each look [1-9]", shown)
                return shown if rates and whole and " python3" in shown else None
            shown = wait_for("a busy screen", screen, 30)
        finally:
            s.run("tmux", "send-keys", "q", check=False)
        s.picture("top", shown)
        wait_for("top to end", lambda: s.run("tmux", "list-sessions", check=False).returncode != 0, 10)
        s.picture("status", s.run("fasts3-mount", "status", "/mnt/data").stdout)
    # The network is the host's.
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    s.picture("metrics", text)
    served = re.search(r"(?m)^fasts3_served_bytes_total\S* ([\d.e+]+)$", text)
    assert float(served[1]) > 1e6, text
    assert s.run("fasts3-mount", "drop", "/mnt/data").returncode == 0
    assert s.run("fasts3-mount", "warm", "/mnt/data/train", seconds=90).returncode == 0

    s.store.tell("add get datasets/weights.bin status=500:InternalError")
    failed = s.run("cat", "/mnt/data/weights.bin", check=False)
    assert failed.returncode == 1 and "Input/output error" in failed.stderr, failed
    entry = s.run("journalctl", "-o", "json", "-n", "1", "FASTS3_KEY=datasets/weights.bin").stdout
    entry = json.loads(entry)
    assert entry["MESSAGE"].startswith("gave up "), entry
    assert entry["FASTS3_OPERATION"] == "get" and entry["PRIORITY"] == "4", entry
    assert entry["_SYSTEMD_UNIT"] == "fasts3-mount@data.service", entry
    s.run("systemctl", "kill", "-s", "USR1", "fasts3-mount@data")
    wait_for("a louder log", lambda: "log level: warn,aws_config=error,fasts3_mount=info,"
             "fasts3_mount=debug" in s.log(), 30)

    s.run("fasts3-mount", "unmount", "/mnt/data")
    wait_for("the unit's end", lambda: s.show("ActiveState", "Result") == ["inactive", "success"], 30)
    assert s.mounts() == []


@case
def a_store_that_throttles_is_one_line_in_the_log(s):
    s.start()
    s.store.tell("add get * status=503:SlowDown times=3")
    s.reads_right("weights.bin")
    s.run("systemctl", "stop", "fasts3-mount@data")
    entries = s.journal("-u", "fasts3-mount@data", "-p", "warning")
    assert entries.count("the store asks to slow down: requests are held back") == 1, entries


@case
def a_journal_that_is_restarted_misses_no_line(s):
    s.start()
    s.run("systemctl", "restart", "systemd-journald")
    s.run("systemctl", "reload", "fasts3-mount@data")
    wait_for("the line", lambda: "SIGHUP: dropped all cached names" in s.log(), 30)


# mount(8) and fstab.


def credentials_of_root(s):
    keys = s.store.environment
    s.write("/root/.aws/credentials", "[default]\n"
            f"aws_access_key_id={keys['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key={keys['AWS_SECRET_ACCESS_KEY']}\n", 0o600)
    s.write("/root/.aws/config", "[default]\nregion=us-east-1\n", 0o600)


def fstab_line(s):
    """That of docs/operations.md."""
    block = s.documented("docs/operations.md", "fstab and mount(8)")
    line = next(line for line in block.splitlines() if line.startswith("s3://"))
    return line.replace("allow_other", f"allow_other,endpoint_url={s.store.endpoint}")


@case
def mount_and_umount_work_as_for_any_file_system(s):
    credentials_of_root(s)
    block = s.documented("docs/operations.md", "fstab and mount(8)")
    command = next(line for line in block.splitlines() if line.startswith("mount -t"))
    s.shell(f"{command},endpoint_url={s.store.endpoint}")
    assert s.mounts() == [("s3://data/datasets/", "/mnt/data")]
    s.reads_right()
    assert "mounted s3://data/datasets/ on /mnt/data" in s.journal("-t", "fasts3-mount")
    s.run("umount", "/mnt/data")
    wait_for("the daemon's end", lambda: s.daemons() == [], 30)
    assert s.mounts() == []
    failed = s.run("mount", "-t", "fasts3", "missing", "/mnt/data", "-o",
                   f"endpoint_url={s.store.endpoint}", check=False)
    assert failed.returncode == 32 and "there is no bucket missing" in failed.stderr, failed
    assert s.mounts() == [] and s.daemons() == []


@case
def a_line_of_fstab_mounts_at_the_first_access_and_again_after_a_kill(s):
    credentials_of_root(s)
    s.write("/etc/fstab", f"{FSTAB}{fstab_line(s)}\n")
    s.run("systemctl", "daemon-reload")
    s.run("systemctl", "start", "mnt-data.automount")
    assert s.run("findmnt", "-rno", "FSTYPE", "/mnt/data").stdout == "autofs\n"
    assert s.mounts() == [] and s.daemons() == []
    s.reads_right()
    assert s.mounts() == [("s3://data/datasets/", "/mnt/data")]
    # A daemon and its holder, which would start another one.
    before = s.daemons()
    assert len(before) == 2, before
    s.run("kill", "-KILL", *before)

    def is_dead():
        # Requests while it dies fail with "Software caused connection abort".
        failed = s.run("ls", "/mnt/data", check=False)
        assert failed.returncode != 0, failed
        return "Transport endpoint is not connected" in failed.stderr
    wait_for("the end of the connection", is_dead, 30)
    s.run("umount", "-l", "/mnt/data")
    s.reads_right()
    assert not set(before) & set(s.daemons())
    assert s.mounts() == [("s3://data/datasets/", "/mnt/data")]


@case
def the_first_access_to_a_line_of_fstab_that_cannot_mount_is_an_error_with_a_reason(s):
    credentials_of_root(s)
    s.write("/etc/fstab", f"{FSTAB}{fstab_line(s).replace('s3://data/', 's3://missing/')}\n")
    s.run("systemctl", "daemon-reload")
    s.run("systemctl", "start", "mnt-data.automount")
    failed = s.run("ls", "/mnt/data", check=False)
    assert failed.returncode != 0 and failed.stdout == "", failed
    assert "there is no bucket missing" in s.journal("-u", "mnt-data.mount")
    assert s.daemons() == []


# The machine.


@case
def after_a_reboot_in_the_middle_of_reads_everything_is_there_again(s):
    credentials_of_root(s)
    s.run("mkdir", "-p", "/mnt/lazy", "/mnt/broken")
    lazy = fstab_line(s).replace("/mnt/data", "/mnt/lazy")
    broken = fstab_line(s).replace("s3://data/", "s3://missing/").replace("/mnt/data", "/mnt/broken")
    broken = broken.replace("x-systemd.automount,", "")
    s.write("/etc/fstab", f"{FSTAB}{lazy}\n{broken}\n")
    s.run("systemctl", "daemon-reload")
    s.settings()
    s.run("systemctl", "enable", "--now", "fasts3-mount@data")
    boot = s.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    with s.reader():
        s.machine.reboot()
    assert s.run("cat", "/proc/sys/kernel/random/boot_id").stdout != boot
    assert s.is_active() and s.mounts() == [("s3://data/datasets/", "/mnt/data")], s.mounts()
    s.reads_right()
    assert s.run("findmnt", "-rno", "FSTYPE", "/mnt/lazy").stdout == "autofs\n"
    s.reads_right(folder="/mnt/lazy")
    # A failed mount keeps nothing from starting.
    assert s.run("systemctl", "is-active", "mnt-broken.mount", check=False).stdout == "failed\n"
    assert s.run("systemctl", "is-active", "multi-user.target").stdout == "active\n"


@case
def a_reboot_between_two_daemons_does_not_wait_for_the_next_one(s):
    s.drop_in("[Service]\nRestartSec=10min\n")
    s.settings()
    s.run("systemctl", "enable", "--now", "fasts3-mount@data")
    with s.reader():
        s.run("kill", "-KILL", s.pid())
        wait_for("nobody to serve", lambda: s.show("SubState") == ["auto-restart"], 30)
        s.machine.reboot()
    wait_for("the mount", lambda: s.is_active() and s.is_mounted(), RESTART)
    s.reads_right()


@case
def a_shutdown_does_not_wait_for_a_store_that_is_silent(s):
    s.settings()
    s.run("systemctl", "enable", "--now", "fasts3-mount@data")
    s.store.tell("add all * silent")
    with s.machine.beside("cat", "/mnt/data/weights.bin"):
        wait_for("a reader that waits", lambda: s.run("pgrep", "-x", "cat", check=False).stdout, 30)
        s.machine.reboot(lambda: (s.store.tell("clear"), s.store.tell("cut")))
    wait_for("the mount", lambda: s.is_active() and s.is_mounted(), RESTART)
    s.reads_right()


@case
def an_upgrade_leaves_mounts_alone_until_a_restart_that_no_reader_notices(s):
    s.start()
    pid = s.pid()
    # The next version: another number, and another program.
    s.shell("""
        cd /root && rm -rf next && dpkg-deb --raw-extract fasts3-mount_*.deb next
        sed -i 's/^Version: .*/&+next/' next/DEBIAN/control
        printf next >>next/usr/bin/fasts3-mount
        # Which not every package has.
        [ ! -e next/DEBIAN/md5sums ] || sed -i '/ usr.bin.fasts3-mount$/d' next/DEBIAN/md5sums
        dpkg-deb --build -Zgzip -z1 next next.deb
    """, seconds=120)
    # All of 1 GiB.
    with s.whole_reader("big.bin", 8 << 20) as reader:
        s.shell("cd /root && apt install -y ./next.deb", seconds=120)
        assert reader.poll() is None
        assert s.show("ActiveState", "MainPID") == ["active", pid]
        s.shell(s.documented("docs/operations.md", "Upgrades"))
        assert s.is_active() and s.pid() != pid
        assert reader.poll() is None
    assert s.run("tail", "-c", "4", f"/proc/{s.pid()}/exe").stdout == "next"
    with s.reader() as reader:
        # As documented: programs with open files are named, and umount refuses.
        assert s.run("fuser", "-m", "/mnt/data").stdout.split()
        refused = s.run("umount", "/mnt/data", check=False)
        assert refused.returncode != 0 and "target is busy" in refused.stderr, refused
        assert s.is_active()
    wait_for("nobody to read", lambda: not s.holders("/mnt/data/big.bin"), 30)
    s.run("umount", "/mnt/data")
    wait_for("the unit's end", lambda: s.show("ActiveState", "Result") == ["inactive", "success"], 30)
    s.run("systemctl", "start", "fasts3-mount@data")
    s.reads_right()


@case
def removing_the_package_unmounts_and_leaves_only_what_was_written_by_hand(s):
    s.start()
    s.shell("apt purge -y fasts3-mount", seconds=120)
    assert s.mounts() == [] and s.daemons() == []
    left = s.shell("ls /usr/bin/fasts3-mount /usr/sbin/mount.fasts3 2>/dev/null || true").stdout
    assert left == "", left
    assert "data.env" in s.run("ls", SETTINGS).stdout
