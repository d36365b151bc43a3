"""devserver behind its faulty proxy: told of rules by lines, and written to as a client does."""

import datetime
import hashlib
import hmac
import http.client
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import prepare
import servers

MIB = 1 << 20


class FaultServer(servers.DevServer):
    """devserver with its proxy. Rules are those of devserver/src/proxy/script.rs."""

    def __init__(self, objects, families, binary=None):
        command = [binary or prepare.TARGET / "release" / "devserver", "--listen", "127.0.0.1:0"]
        command += ["--faults", "--bucket", servers.BUCKET, "--public"]
        for family in families:
            command += ["--family", family]
        for key, size in objects.items():
            command += ["--object", f"{key}={size}"]
        # A command's answer is the next line, so one command at a time.
        self.turn = threading.Lock()
        self._begin(command, stdin=subprocess.PIPE)

    def tell(self, line):
        with self.turn:
            self.process.stdin.write(f"{line}\n".encode())
            word, _, answer = self._line().partition(" ")
        if word != "ok":
            raise RuntimeError(f"{line}: {answer}")
        return answer

    def requests(self):
        """That reached the server: what the proxy refuses itself does not."""
        with self.turn:
            counts = self.counts()
        return counts["list"] + counts["head"] + counts["get"] + counts["other"]

    def digest(self, key, first=0, last=None):
        """Of the object's bytes, not through any mount."""
        request = urllib.request.Request(self.endpoint + path(key))
        if last is not None:
            request.add_header("Range", f"bytes={first}-{last}")
        digest = hashlib.sha256()
        with urllib.request.urlopen(request, timeout=60) as answer:
            while chunk := answer.read(MIB):
                digest.update(chunk)
        return digest.hexdigest()

    def put(self, key, body):
        self._write("PUT", key, body)

    def delete(self, key):
        self._write("DELETE", key, b"")

    def _write(self, method, key, body):
        """Until it succeeds, for the proxy breaks these as well; both may be done twice."""
        for _ in range(100):
            host = self.endpoint.removeprefix("http://")
            connection = http.client.HTTPConnection(host, timeout=5)
            try:
                headers = signed(method, host, path(key), self.environment)
                connection.request(method, path(key), body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status < 300:
                    return
                failure = answer.status
            except (OSError, http.client.HTTPException) as error:
                failure = error
            finally:
                connection.close()
            time.sleep(0.2)
        raise RuntimeError(f"{method} {key}: {failure}")



def path(key):
    return f"/{servers.BUCKET}/{urllib.parse.quote(key)}"


def signed(method, host, path, keys):
    """Headers of a request without a query, in AWS's signature version 4."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": now}
    names = ";".join(headers)
    lines = [method, path, "", *(f"{name}:{value}" for name, value in headers.items()), "", names]
    request = "\n".join([*lines, "UNSIGNED-PAYLOAD"])
    scope = [now[:8], keys["AWS_REGION"], "s3", "aws4_request"]
    key = f"AWS4{keys['AWS_SECRET_ACCESS_KEY']}".encode()
    for word in scope:
        key = hmac.digest(key, word.encode(), "sha256")
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", now, "/".join(scope), digest])
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    who = f"{keys['AWS_ACCESS_KEY_ID']}/{'/'.join(scope)}"
    authorization = f"AWS4-HMAC-SHA256 Credential={who}, SignedHeaders={names}, Signature={signature}"
    return headers | {"Authorization": authorization}
