"""The child process of the development server: answers requests until its standard input ends.

Standard input is a pipe from the supervisor, which never writes to it. Closing the pipe tells the child to finish its requests and
exit. The kernel closes the pipe if the supervisor is killed, so no orphan remains.

The supervisor runs this file by its path, not with ``-m``. The child imports nothing of the project before it can show an error
page, so an error in any module becomes a page with the traceback.
"""

import argparse
import html
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

if TYPE_CHECKING:
    from socket import socket

    from narserve.dev.routing import Function

ROOT = Path(__file__).resolve().parents[2]
DRAIN_SECONDS = 5.0
BAD_SETTING = 2

LOG_JSON = os.environ.get("NAR_LOG_FORMAT") == "json"

# Characters that must be escaped in the log: control characters, and those that could forge a second line.
ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA1))}


def main() -> int:
    options = parse_arguments()
    examples = [(label, path) for label, path in options.examples]
    stop = threading.Event()
    threading.Thread(target=wait_for_end_of_input, args=[stop], daemon=True).start()
    application = load(options.target, examples, strict=options.strict)
    server = DrainingServer(options.host, 0, RequestLog(application), fd=options.fd)
    loop = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    loop.start()
    stop.wait()
    server.shutdown()
    server.wait_until_drained(DRAIN_SECONDS)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer requests on an open socket until standard input ends.")
    parser.add_argument("--fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--host", required=True, help="the address of the socket")
    parser.add_argument(
        "--examples", type=json.loads, default=[], help="JSON: pairs of label and path for the landing page"
    )
    parser.add_argument(
        "--target", choices=("vercel", "lambda"), default="vercel", help="the platform whose routing to emulate"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit on an invalid setting instead of showing an error page"
    )
    return parser.parse_args()


def wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()
    # Exit even if a thread is stuck in an import or at exit: the child must not outlive its supervisor for long.
    time.sleep(DRAIN_SECONDS + 1)
    os._exit(1)


class DrainingServer(ThreadedWSGIServer):
    """A server on a shared socket that can wait until its open connections are answered."""

    def __init__(self, host: str, port: int, app: WSGIApplication, *, fd: int) -> None:
        super().__init__(host, port, app, LoggedRequestHandler, fd=fd)
        self._open = 0
        self._changed = threading.Condition()
        # During a reload, two children wait on the socket. If one child accepts a connection, the other must not block in accept().
        os.set_blocking(self.socket.fileno(), False)

    def get_request(self) -> tuple["socket", Any]:
        connection, address = super().get_request()
        connection.setblocking(True)  # on some systems, connections inherit the listener's non-blocking mode
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._open += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def wait_until_drained(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, seconds)


class LoggedRequestHandler(WSGIRequestHandler):
    # HTTP/1.1 allows chunked bodies. With HTTP/1.0, a truncated response without a length would look complete. Werkzeug closes the
    # connection after each response, so no client stays connected to the old code after a reload.
    protocol_version = "HTTP/1.1"

    def run_wsgi(self) -> None:
        if self.request_version < "HTTP/1.1":  # RFC 9112 7.1: such a client can't read chunks
            self.protocol_version = "HTTP/1.0"
        super().run_wsgi()

    def make_environ(self) -> WSGIEnvironment:
        """Decode the path to bytes, as PEP 3333 requires. Werkzeug decodes it to text, and replaces what is not UTF-8."""
        environ = super().make_environ()
        url = urlsplit(self.path)
        path = url.path if url.scheme or not url.netloc else f"/{url.netloc}{url.path}"
        environ["PATH_INFO"] = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
        return environ

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Do nothing: RequestLog prints the line when the response has ended."""


class RequestLog:
    """Middleware that prints one line per request when its response has ended: method, path, status, bytes, milliseconds."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer = Answer(environ)

        def remember_status(status: str, *rest: Any) -> Any:
            answer.status = status[:3]
            return start_response(status, *rest)

        try:
            answer.chunks = self.application(environ, remember_status)
        except Exception:
            answer.status, answer.ended = "500", True  # Werkzeug sends an error page
            answer.close()
            raise
        return answer


class Answer:
    """A response body that counts the bytes sent, and prints the log line when it is closed."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.method = environ["REQUEST_METHOD"]
        self.path = environ["REQUEST_URI"]
        self.started = time.perf_counter()
        self.status = "---"
        self.sent = 0
        self.ended = False
        self.chunks: Iterable[bytes] = ()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            yield chunk
            self.sent += len(chunk)
        self.ended = True

    def close(self) -> None:
        if (close := getattr(self.chunks, "close", None)) is not None:
            close()
        spent = round((time.perf_counter() - self.started) * 1000, 1)
        sys.stdout.write(f"{self.as_json(spent) if LOG_JSON else self.as_text(spent)}\n")
        sys.stdout.flush()

    def as_text(self, milliseconds: float) -> str:
        cut = "" if self.ended else " cut short"
        return f"{self.method} {self.path.translate(ESCAPES)} {self.status} {self.sent} B {milliseconds} ms{cut}"

    def as_json(self, milliseconds: float) -> str:
        return json.dumps(
            {
                "method": self.method,
                "path": self.path,
                "status": self.status,
                "bytes": self.sent,
                "ms": milliseconds,
                "complete": self.ended,
            }
        )


def load(target: str, examples: Sequence[tuple[str, str]], *, strict: bool) -> WSGIApplication:
    """Return the application as it is on disk now, or an error page if it can't be loaded."""
    sys.path[0] = str(ROOT)
    try:
        return load_lambda(examples) if target == "lambda" else load_application(examples)
    except SystemExit as ended:  # an invalid setting, as a one-line message
        # A module that exits with a number has printed the reason itself.
        text = f"{ended.code}\n" if isinstance(ended.code, str) else ""
        sys.stderr.write(text)
        if strict:
            sys.exit(BAD_SETTING)
        return error_page(text or "A setting is invalid; see the terminal.\n")
    except Exception:  # noqa: BLE001  a module can raise anything, and the page shows it
        text = traceback.format_exc()
        sys.stderr.write(text)
        return error_page(text)


def load_application(examples: Sequence[tuple[str, str]]) -> WSGIApplication:
    """Load the application as on Vercel.

    Raises SystemExit with a one-line message, as ``api/index.py`` does, or any exception that a broken module raises.
    """
    from narcore.errors import SettingsError
    from narserve.dev.routing import Deployment, Router, VercelJsonError

    try:
        return Router(Deployment.read(ROOT), lambda function: load_function(function, examples))
    except (SettingsError, VercelJsonError) as error:
        sys.exit(f"start-dev: {error}")


def load_lambda(examples: Sequence[tuple[str, str]]) -> WSGIApplication:
    """Load the application as on Lambda. Raises SystemExit with a one-line message, or any exception of a broken module."""
    from narserve.awslambda.application import load_application
    from narserve.awslambda.buffered import CARRIES, make_handler
    from narserve.dev.lambdatarget import LambdaTarget

    return LambdaTarget(lambda: make_handler(load_application(CARRIES, examples)))


def load_function(function: "Function", examples: Sequence[tuple[str, str]]) -> WSGIApplication:
    """Import a function as Vercel does. If the landing page has examples, make the application here, with the examples."""
    module = importlib.import_module(function.module)
    application: WSGIApplication = getattr(module, function.attribute)
    if not (examples and function.file == "api/index.py"):
        return application
    from api.factory import create_app
    from narcore.settings import Settings

    return create_app(Settings.from_environ(os.environ), examples=examples)


def error_page(text: str) -> WSGIApplication:
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>nar-serve does not start</title>'
        "<h1>nar-serve does not start</h1><p>Fix the error and save the file; the server then restarts.</p>"
        f"<pre>{html.escape(text)}</pre></html>\n"
    ).encode(errors="backslashreplace")

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(page))),
            ("Content-Security-Policy", "default-src 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
        ]
        start_response("500 Internal Server Error", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [page]

    return application


if __name__ == "__main__":
    sys.exit(main())
