"""The S3 server that the container's mounts read from, and what breaks its answers."""

import concurrent.futures
import contextlib
import hashlib
import json
import selectors
import signal
import subprocess
import urllib.parse
import urllib.request

BUCKET = "data"
PART = 4 << 20
# Some as in the README, and one that takes a while to read.
HOLDS = ["--family", "datasets/train/cat/:200:110KB:.jpg", "--object", "datasets/big.bin=1GiB",
         "--object", "datasets/weights.bin=30MB", "--object", "other/file=1KB"]


class Store:
    """devserver on a free port of the loopback, behind its proxy of faults."""

    def __init__(self, program):
        command = [program, "--listen", "127.0.0.1:0", "--bucket", BUCKET, "--public", "--faults",
                   "--bandwidth-per-connection", "20MB", *HOLDS]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, bufsize=0, process_group=0)

    def __enter__(self):
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.environment = {}
        try:
            while "AWS_REGION" not in self.environment:
                line = self._line()
                if line.startswith("export "):
                    name, _, value = line.removeprefix("export ").partition("=")
                    self.environment[name] = value
        except BaseException:
            self.__exit__()
            raise
        self.endpoint = self.environment.pop("AWS_ENDPOINT_URL")
        return self

    def __exit__(self, *failure):
        self.selector.close()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait(10)

    def tell(self, line):
        """Has answers broken, in the words of devserver/src/proxy/script.rs."""
        self.process.stdin.write(f"{line}\n".encode())
        word, _, answer = self._line().partition(" ")
        if word != "ok":
            raise RuntimeError(f"{line}: {answer}")

    def lists(self):
        """Listing pages that were asked for so far."""
        self.process.send_signal(signal.SIGUSR1)
        return json.loads(self._line())["list"]

    def digest(self, key):
        """Of the object's bytes, not through any mount."""
        path = f"{self.endpoint}/{BUCKET}/{urllib.parse.quote(key)}"
        with urllib.request.urlopen(urllib.request.Request(path, method="HEAD"), timeout=30) as head:
            size = int(head.headers["Content-Length"])

        def part(begin):
            asked = {"Range": f"bytes={begin}-{min(begin + PART, size) - 1}"}
            with urllib.request.urlopen(urllib.request.Request(path, headers=asked), timeout=120) as body:
                return body.read()

        digest = hashlib.sha256()
        # A connection is slow.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for begin in range(0, size, 8 * PART):
                for bytes_ in pool.map(part, range(begin, min(begin + 8 * PART, size), PART)):
                    digest.update(bytes_)
        return digest.hexdigest()

    def _line(self):
        if not self.selector.select(timeout=30):
            raise RuntimeError("devserver says nothing")
        return self.process.stdout.readline().decode().strip()
