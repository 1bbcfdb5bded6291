"""A real S3 API on this machine: moto's server, in a process of its own."""

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from tests import tools

BUCKET = "nar-serve-large"


@dataclass(frozen=True, slots=True)
class S3:
    """The server, with one bucket in it. ``log`` has a line for each request."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """For the environment of a front: where the bucket is, and who asks."""
        return {
            "NAR_OFFLOAD_URL": f"s3://{BUCKET}/large files?endpoint={self.url}",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AWS_SESSION_TOKEN": "a/session+token==",
        }

    def uploads(self) -> int:
        """How many multipart uploads were begun so far."""
        return len(re.findall(r'"POST \S+\?uploads', self.log.read_text()))

    def request(self, method: str, path: str) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            assert response.status < 300, (response.status, body)
            return body
        finally:
            connection.close()

    def objects(self) -> list[str]:
        """The keys of all objects."""
        return re.findall(r"<Key>([^<]*)</Key>", self.request("GET", f"/{BUCKET}?list-type=2").decode())

    def unfinished(self) -> list[str]:
        """The keys of uploads that were neither completed nor aborted."""
        return re.findall(r"<Key>([^<]*)</Key>", self.request("GET", f"/{BUCKET}?uploads").decode())


@contextlib.contextmanager
def running(log: Path) -> Iterator[S3]:
    """A server with an empty bucket, until the end of the ``with``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [tools.moto_server(), "-H", "127.0.0.1", "-p", str(port)], stdout=output, stderr=subprocess.STDOUT
        )
    server = S3(port, log)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                server.request("PUT", f"/{BUCKET}")
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait()
