"""The plugin's socket, and the server on it: Werkzeug's, with a thread a call.

The one client is dockerd on the same machine, as root. It makes a handful of short calls a container, one a connection, and what
they wait for is the kernel. All of the state is in one process. gunicorn's workers, timeouts and restarts are for other
things, and it is an extra; Werkzeug is there with Flask. What its server leaves open is bounded here: calls at once, and how long
a client may be silent.
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

CALLS_MAX = 64  # at once; dockerd's next ones wait to be accepted
BACKLOG = 128
SILENCE_SECONDS = 30  # so long a client may take to say something, or to listen
LOOK_SECONDS = 0.5  # between two looks whether it is to stop, while all calls are taken
STOP_SECONDS = 10  # so long stopping waits for calls under way; what they leave behind is seen to at the next start

_STOPPING = {signal.SIGTERM, signal.SIGINT}

log = logging.getLogger("narmount.docker")


class Service:
    """Answers by ``app`` on the socket at ``path``, from ``start`` until ``close``. ``start`` raises SettingsError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._serve, name="accept", daemon=True)

    def start(self, app: "WSGIApplication") -> None:
        """The socket is there at once with its mode, and with somebody who listens: dockerd may be waiting for it."""
        with _bound(self._path) as listener:
            self._server = _Server(f"unix://{self._path}", 0, app, _Handler, fd=listener.fileno())
        self._thread.start()

    def _serve(self) -> None:
        assert self._server
        self._server.serve_forever()

    def close(self) -> None:
        """No new calls; those under way may end, for a while."""
        if self._server is None:
            return
        self._path.unlink(missing_ok=True)
        self._server.is_stopping = True
        self._server.shutdown()
        self._thread.join()
        self._server.wait_for_calls(STOP_SECONDS)


def block_signals() -> None:
    """Those that end us, in this thread and in all that it starts: see `wait_for_signal`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)


def wait_for_signal() -> signal.Signals:
    return signal.Signals(signal.sigwait(_STOPPING))


@contextmanager
def sole_owner(directory: Path) -> Iterator[None]:
    """Nobody else has the state in ``directory``, which is made. Raises SettingsError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            step = "stop that one first, or name another --state-dir and --socket"
            raise SettingsError(f"another nar-serve docker-volume has its state in {directory}; {step}") from error
        yield


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A socket that listens, and appears at ``path`` when it does, for its owner alone. Raises SettingsError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(part)) > SOCKET_PATH_MAX:
        raise SettingsError(f"--socket {path} is too long a path for a socket; name a shorter one")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _see_that_it_is_a_socket(path)
            with suppress(FileNotFoundError):
                part.unlink()
            listener.bind(str(part))
            part.chmod(0o600)
            listener.listen(BACKLOG)
            part.replace(path)
        except OSError as error:
            raise SettingsError(f"--socket {path}: can't listen there: {error.strerror or error}") from error
        yield listener


def _see_that_it_is_a_socket(path: Path) -> None:
    """What is not one was not left behind by us. Raises SettingsError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SettingsError(f"--socket {path} is there and is no socket; name another path, or move it away")


class _Server(ThreadedWSGIServer):
    """A thread for each call, up to a limit."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._free = threading.BoundedSemaphore(CALLS_MAX)
        self.is_stopping = False

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._free.acquire(timeout=LOOK_SECONDS):
            if self.is_stopping:
                self.shutdown_request(request)  # dockerd asks whoever is next
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
        log.exception("a call broke off")

    def wait_for_calls(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for _ in range(CALLS_MAX):
            if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
                log.warning("a call has not ended in %g seconds, and is left", seconds)
                return


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_SECONDS

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  Werkzeug's name
        """The app logs what was called for; what is left is what was no HTTP."""
        if type == "error":
            log.warning(message, *args)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def ask(path: Path, timeout: float) -> bytes:
    """What the plugin behind the socket says at ``/status``. Raises MountError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                whole = answer.read(64 << 20)
    except OSError as error:
        step = "is nar-serve docker-volume running? --socket names another one"
        raise MountError(f"nobody answers at {path} ({error.strerror or error}); {step}") from error
    return whole.partition(b"\r\n\r\n")[2]
