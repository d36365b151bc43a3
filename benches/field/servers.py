"""The S3 server that everybody reads from, and what it was asked."""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import prepare
import processes

# Of the loopback itself, and of devserver.
NETWORKS = ["loop", "s3", "flash", "near", "far"]
# Behind a network's name: over TLS.
HTTPS = " https"
BUCKET = "data"


class DevServer:
    """devserver on a free port of the loopback; `holds` are its flags for what is in the bucket.
    `folder` is for what belongs to it."""

    folder = None

    def __init__(self, network, holds):
        self.folder = Path(tempfile.mkdtemp(prefix="server-", dir=prepare.WORK))
        command = [prepare.TARGET / "release" / "devserver", "--listen", "127.0.0.1:0"]
        command += ["--bucket", BUCKET, *holds]
        if network.endswith(HTTPS):
            command += ["--tls", self.folder / "certificate.pem"]
        if (name := network.removesuffix(HTTPS)) != "loop":
            command += ["--network", name]
        self._begin(command)

    def _begin(self, command, **pipes):
        self.process = processes.start(command, stdout=subprocess.PIPE, bufsize=0, **pipes)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.environment = {}
        while "AWS_REGION" not in self.environment:  # the last of them
            line = self._line()
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                self.environment[name] = value
        self.endpoint = self.environment["AWS_ENDPOINT_URL"]

    def environ(self):
        """The environment of a client: nothing of the user's own configuration."""
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("AWS_")}
        nowhere = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
        # What programs in Go and those with OpenSSL believe, and those with curl.
        believed = {name: self.environment["AWS_CA_BUNDLE"]
                    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE")
                    if "AWS_CA_BUNDLE" in self.environment}
        return inherited | nowhere | believed | self.environment

    def put(self, path):
        """Uploads a file under its own name."""
        script = "import sys, boto3; boto3.client('s3').put_object(Bucket=sys.argv[1], "
        script += "Key=sys.argv[2], Body=open(sys.argv[3], 'rb'))"
        command = [prepare.PYTHON, "-c", script, BUCKET, path.name, path]
        subprocess.run(command, env=self.environ(), check=True, timeout=120)

    def put_tree(self, key, folder):
        """Uploads all files below a folder."""
        script = """
import concurrent.futures, pathlib, sys
import boto3, botocore.config
bucket, key, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
client = boto3.client("s3", config=botocore.config.Config(max_pool_connections=16))
def put(path):
    name = f"{key}/{path.relative_to(folder).as_posix()}"
    client.put_object(Bucket=bucket, Key=name, Body=path.read_bytes())
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    list(pool.map(put, (path for path in folder.rglob("*") if path.is_file())))
"""
        command = [prepare.PYTHON, "-c", script, BUCKET, key, folder]
        subprocess.run(command, env=self.environ(), check=True, timeout=600)

    def counts(self):
        """Requests by kind and bytes sent, since the start."""
        self.process.send_signal(signal.SIGUSR1)
        return json.loads(self._line())

    def cpu_seconds(self):
        return processes.cpu_seconds(self.process.pid)

    def close(self):
        processes.end(self.process)
        with contextlib.suppress(KeyError):
            self.selector.unregister(self.process.stdout)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _line(self):
        if not self.selector.select(timeout=30):
            raise RuntimeError("devserver says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("devserver has ended")
        return line.decode().strip()
