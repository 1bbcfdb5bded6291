"""An S3 server for tests: moto, in a separate process."""

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
    """The server, with one bucket. ``log`` has a line for each request."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables of a front that uses the bucket: its URL and credentials."""
        return {
            "NAR_OFFLOAD_URL": f"s3://{BUCKET}/large files?endpoint={self.url}",
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "AWS_SESSION_TOKEN": "a/session+token==",
        }

    def uploads(self) -> int:
        """Return the number of multipart uploads that were started up to now."""
        return len(re.findall(r'"POST \S+\?uploads', self.log.read_text()))

    def request(self, method: str, path: str) -> bytes:
        """Send a request and return the body of its response; fails on an error status."""
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
        """Return the keys of all objects."""
        return re.findall(r"<Key>([^<]*)</Key>", self.request("GET", f"/{BUCKET}?list-type=2").decode())

    def unfinished(self) -> list[str]:
        """Return the keys of uploads that were neither completed nor aborted."""
        return re.findall(r"<Key>([^<]*)</Key>", self.request("GET", f"/{BUCKET}?uploads").decode())


@contextlib.contextmanager
def running(log: Path) -> Iterator[S3]:
    """Run a server with an empty bucket until the end of the ``with``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
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
