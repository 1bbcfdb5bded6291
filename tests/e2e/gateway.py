"""API Gateway and Lambda on this machine: HTTP in, events out to real runtime clients, and back.

``python -m tests.e2e.gateway --fd N handler`` runs awslambdaric; with ``stream``, our own client, by the wrapper that Lambda
would start. Like Lambda it replaces a process that ends, and gives each one request at a time.
"""

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from narserve.dev.apigateway import EnvelopeError, HttpRequest, answer_of, event_of, response_headers
from tests import ROOT
from tests.e2e.runtime_api import FunctionError, Invocation, Prelude, RuntimeApi

TIMEOUT = 29.0  # the gateway's

PYTHON = os.environ.get("LAMBDA_PYTHON", sys.executable)
TASK_ROOT = os.environ.get("LAMBDA_TASK_ROOT", str(ROOT))
"""What the function is run with, and where its package is: the environment may say others than those of the tests."""

COMMANDS: dict[str, list[str]] = {
    "handler": [PYTHON, "-m", "awslambdaric", "narserve/awslambda/handler.handler"],
    "stream": [f"{TASK_ROOT}/narserve/awslambda/stream", PYTHON, "/var/runtime/bootstrap.py"],
}
"""What Lambda starts; behind the wrapper comes the command line of its own client."""


def environment(api: RuntimeApi) -> dict[str, str]:
    """What Lambda sets for a function."""
    return os.environ | {
        "AWS_LAMBDA_FUNCTION_NAME": "nar-serve",
        "AWS_LAMBDA_RUNTIME_API": api.address,
        "AWS_REGION": "us-east-1",
        "LAMBDA_TASK_ROOT": TASK_ROOT,
        "_HANDLER": "narserve/awslambda/handler.handler",
    }


class Instance:
    """A process of the function, and the one in its place if it ends."""

    def __init__(self, command: list[str], waiting: "queue.SimpleQueue[Invocation]") -> None:
        self._api = RuntimeApi(waiting)
        self._command = command
        self._process = self._start()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, cwd=TASK_ROOT, env=environment(self._api))

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            if self._process.poll() is not None:
                self._api.fail_all(f"Runtime exited with status {self._process.returncode}")
                time.sleep(0.2)
                self._process = self._start()

    def stop(self) -> None:
        self._ended.set()
        self._watcher.join()
        self._process.terminate()
        self._process.wait(5)
        self._api.close()


class Gateway(ThreadingHTTPServer):
    """Answers on an open socket."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.waiting: queue.SimpleQueue[Invocation] = queue.SimpleQueue()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Gateway

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name that the base class gave it)
        """Requests are not printed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # ANY
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        # The name in front of the path is the host's business; http.server reads "//x" as one slash.
        target = self.requestline.split(" ")[1]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = [*self.headers.items(), ("X-Forwarded-Proto", "http")]
        request = HttpRequest(self.command, target, headers, body, self.client_address[0])
        if not request.is_acceptable:
            self._refuse(400, "Bad Request")
            return
        try:
            self._pass_on(request)
        except (FunctionError, EnvelopeError) as error:
            print(f"gateway: {self.command} {target}: {error}", file=sys.stderr, flush=True)
            self._refuse(504 if "timed out" in str(error) else 502, "Internal server error")

    def _pass_on(self, request: HttpRequest) -> None:
        invocation = Invocation(event_of(request))
        self.server.waiting.put(invocation)
        parts = invocation.parts(TIMEOUT)
        first = next(parts)
        if isinstance(first, bytes):
            answer = answer_of(request, first)
            self._head(answer.status, answer.headers)
            self.wfile.write(answer.body)
            return
        headers = response_headers(request, first.given, None)
        sized = request.method == "HEAD" or any(name.lower() == "content-length" for name, _ in headers)
        chunked = not sized and first.given["statusCode"] not in (204, 304)
        self._head(first.given["statusCode"], headers + ([("Transfer-Encoding", "chunked")] if chunked else []))
        try:
            for part in parts:
                assert not isinstance(part, Prelude)
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except FunctionError as error:
            print(f"gateway: cut {request.method} {request.target}: {error}", file=sys.stderr, flush=True)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response_only(status)
        for name, value in [*headers, ("x-amzn-RequestId", "c0ffee00-0000-4000-8000-000000000000")]:
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: int, message: str) -> None:
        body = f'{{"message": "{message}"}}'.encode()
        self._head(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("kind", choices=COMMANDS)
    given = parser.parse_args()
    gateway = Gateway(socket.socket(fileno=given.fd))
    instances = [Instance(COMMANDS[given.kind], gateway.waiting) for _ in range(given.instances)]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=gateway.serve_forever, args=(0.05,), daemon=True).start()
    stop.wait()
    gateway.shutdown()
    for instance in instances:
        instance.stop()
    # Not by way of the interpreter's end, which would warn of the connections that threads still hold.
    os._exit(0)


if __name__ == "__main__":
    main()
