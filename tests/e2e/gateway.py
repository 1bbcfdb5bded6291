"""An emulation of API Gateway and Lambda: converts HTTP requests to events for real runtime clients, and their results to HTTP.

``python -m tests.e2e.gateway --fd N handler`` runs awslambdaric; ``stream`` instead of ``handler`` runs the streaming client of
nar-serve, through the wrapper that Lambda would start. Like Lambda, the gateway replaces a process that ends, and gives each
process one request at a time.
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

TIMEOUT = 29.0  # seconds; the timeout of API Gateway

PYTHON = os.environ.get("LAMBDA_PYTHON", sys.executable)
TASK_ROOT = os.environ.get("LAMBDA_TASK_ROOT", str(ROOT))
"""The interpreter and the package directory of the function. The environment can override both."""

COMMANDS: dict[str, list[str]] = {
    "handler": [PYTHON, "-m", "awslambdaric", "narserve/awslambda/handler.handler"],
    "stream": [f"{TASK_ROOT}/narserve/awslambda/stream", PYTHON, "/var/runtime/bootstrap.py"],
}
"""The commands that Lambda starts. Lambda appends the command line of its own client to that of a wrapper."""


def environment(api: RuntimeApi) -> dict[str, str]:
    """Return the environment that Lambda sets for a function."""
    return os.environ | {
        "AWS_LAMBDA_FUNCTION_NAME": "nar-serve",
        "AWS_LAMBDA_RUNTIME_API": api.address,
        "AWS_REGION": "us-east-1",
        "LAMBDA_TASK_ROOT": TASK_ROOT,
        "_HANDLER": "narserve/awslambda/handler.handler",
    }


class Instance:
    """A process of the function, replaced by a new one when it ends."""

    def __init__(self, command: list[str], pending: "queue.SimpleQueue[Invocation]") -> None:
        self._api = RuntimeApi(pending)
        self._command = command
        self._process = self._start()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, cwd=TASK_ROOT, env=environment(self._api))

    def _watch(self) -> None:
        while not self._stopping.wait(0.05):
            if self._process.poll() is not None:
                self._api.fail_all(f"Runtime exited with status {self._process.returncode}")
                time.sleep(0.2)
                self._process = self._start()

    def stop(self) -> None:
        self._stopping.set()
        self._watcher.join()
        self._process.terminate()
        self._process.wait(5)
        self._api.close()


class Gateway(ThreadingHTTPServer):
    """The HTTP server, on a socket that is already listening."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.pending: queue.SimpleQueue[Invocation] = queue.SimpleQueue()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Gateway

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (named by the base class)
        """Do not log requests."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # any method
            return self._respond
        raise AttributeError(name)

    def _respond(self) -> None:
        # `event_of` removes the stage from the path. Not self.path: http.server replaces leading slashes ("//x") with a single one.
        target = self.requestline.split(" ")[1]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = [*self.headers.items(), ("X-Forwarded-Proto", "http")]
        request = HttpRequest(self.command, target, headers, body, self.client_address[0])
        if not request.is_acceptable:
            self._refuse(400, "Bad Request")
            return
        try:
            self._invoke(request)
        except (FunctionError, EnvelopeError) as error:
            print(f"gateway: {self.command} {target}: {error}", file=sys.stderr, flush=True)
            self._refuse(504 if "timed out" in str(error) else 502, "Internal server error")

    def _invoke(self, request: HttpRequest) -> None:
        invocation = Invocation(event_of(request))
        self.server.pending.put(invocation)
        parts = invocation.parts(TIMEOUT)
        first = next(parts)
        if isinstance(first, bytes):
            response = answer_of(request, first)
            self._head(response.status, response.headers)
            self.wfile.write(response.body)
            return
        headers = response_headers(request, first.fields, None)
        has_length = request.method == "HEAD" or any(name.lower() == "content-length" for name, _ in headers)
        chunked = not has_length and first.fields["statusCode"] not in (204, 304)
        self._head(first.fields["statusCode"], headers + ([("Transfer-Encoding", "chunked")] if chunked else []))
        try:
            for part in parts:
                assert not isinstance(part, Prelude)
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except FunctionError as error:
            print(f"gateway: {request.method} {request.target}: {error}; closing", file=sys.stderr, flush=True)
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
    arguments = parser.parse_args()
    gateway = Gateway(socket.socket(fileno=arguments.fd))
    instances = [Instance(COMMANDS[arguments.kind], gateway.pending) for _ in range(arguments.instances)]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=gateway.serve_forever, args=(0.05,), daemon=True).start()
    stop.wait()
    gateway.shutdown()
    for instance in instances:
        instance.stop()
    # Exit without interpreter shutdown, which would warn about connections that threads still have open.
    os._exit(0)


if __name__ == "__main__":
    main()
