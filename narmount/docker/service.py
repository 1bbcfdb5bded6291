"""The socket of the plugin, and its server: Werkzeug's, with a thread for each call.

The only client is dockerd on the same machine, as root. For each container, dockerd makes a few short calls, each in its own
connection. A call takes as long as the kernel needs to mount. All state is in one process, so the workers, timeouts and restarts of
gunicorn, an optional dependency, would not help. Werkzeug is installed with Flask. Its server has no limits, so this module limits
the number of concurrent calls and the time that a client may be silent.
"""

import fcntl
import logging
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from narcore.errors import MountError, SettingsError
from narmount.daemon.control import SOCKET_PATH_MAX

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CALLS_MAX = 64  # concurrent calls; further connections wait to be accepted
BACKLOG = 128
SILENCE_SECONDS = 30  # how long a client may be silent while it sends or receives
LOOK_SECONDS = 0.5  # how often the server checks whether it should stop, while CALLS_MAX calls are running
STOP_SECONDS = 10  # how long `close` waits for running calls; the next start completes interrupted calls

_STOPPING = {signal.SIGTERM, signal.SIGINT}

log = logging.getLogger("narmount.docker")


class Service:
    """A server at the socket ``path``, from ``start`` until ``close``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._serve, name="accept", daemon=True)

    def start(self, app: "WSGIApplication") -> None:
        """Serve ``app``. Raises SettingsError if it can't listen at its path.

        The socket appears with its final mode and accepts connections immediately, since dockerd may already wait for the socket.
        """
        with _bound(self._path) as listener:
            self._server = _Server(f"unix://{self._path}", 0, app, _Handler, fd=listener.fileno())
        self._thread.start()

    def _serve(self) -> None:
        assert self._server
        self._server.serve_forever()

    def close(self) -> None:
        """Accept no new calls, and wait up to STOP_SECONDS for running calls."""
        if self._server is None:
            return
        self._path.unlink(missing_ok=True)
        self._server.is_stopping = True
        self._server.shutdown()
        self._thread.join()
        self._server.wait_for_calls(STOP_SECONDS)


def block_signals() -> None:
    """Block SIGTERM and SIGINT in this thread and in all threads that it starts, for ``wait_for_signal``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)


def wait_for_signal() -> signal.Signals:
    """Wait for SIGTERM or SIGINT, and return the signal that arrived."""
    return signal.Signals(signal.sigwait(_STOPPING))


@contextmanager
def sole_owner(directory: Path) -> Iterator[None]:
    """Create and lock a state directory. Raises SettingsError if another process uses it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            step = "stop it first, or choose another --state-dir and --socket"
            raise SettingsError(f"another nar-serve docker-volume uses {directory}; {step}") from error
        yield


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """Yield a socket that listens at ``path``, where only its owner can connect. Raises SettingsError.

    The socket is bound to a temporary name, and renamed when it listens.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(part)) > SOCKET_PATH_MAX:
        raise SettingsError(f"--socket {path} is too long for a socket; use a shorter path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _check_is_socket(path)
            with suppress(FileNotFoundError):
                part.unlink()
            listener.bind(str(part))
            part.chmod(0o600)
            listener.listen(BACKLOG)
            part.replace(path)
        except OSError as error:
            raise SettingsError(f"--socket {path}: can't listen there: {error.strerror or error}") from error
        yield listener


def _check_is_socket(path: Path) -> None:
    """Raise SettingsError if the path exists and is not a socket: only a socket can be left over from an earlier run."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SettingsError(f"--socket {path} exists and is not a socket; use another path, or move the file away")


class _Server(ThreadedWSGIServer):
    """A server with a thread for each call, and at most CALLS_MAX threads."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._free = threading.BoundedSemaphore(CALLS_MAX)
        self.is_stopping = False

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._free.acquire(timeout=LOOK_SECONDS):
            if self.is_stopping:
                self.shutdown_request(request)  # dockerd repeats the call, and the next process answers it
                return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("call failed")

    def wait_for_calls(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for _ in range(CALLS_MAX):
            if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
                log.warning("a call is still running after %g seconds, and is abandoned", seconds)
                return


class _Handler(WSGIRequestHandler):
    def setup(self) -> None:
        self.request.settimeout(SILENCE_SECONDS)
        super().setup()

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  Werkzeug's name
        """Log requests that are not valid HTTP. The app logs all others."""
        if type == "error":
            log.warning(message, *args)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def ask(path: Path, timeout: float) -> bytes:
    """Return the body of ``GET /status`` from the plugin at a socket. ``timeout`` is in seconds. Raises MountError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as file:
                response = file.read(64 << 20)
    except OSError as error:
        step = "is nar-serve docker-volume running with this --socket?"
        raise MountError(f"no answer at {path} ({error.strerror or error}); {step}") from error
    return response.partition(b"\r\n\r\n")[2]
