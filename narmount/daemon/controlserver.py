"""The server on the control socket of a mount: status, news of names that have appeared, and requests to prefetch.

A client sends one line of JSON, and gets lines of JSON back::

    {"do": "status"}                        its status, as one line
    {"do": "watch"}                         {"names": []} at once, then {"names": [...]} whenever denied ones appear
    {"do": "prefetch", "names": [...]}      {} when the closures of these store paths (base names) are in the queue

Where something is wrong with the request, the line is ``{"error": "..."}``. The listening socket is the holder's, and each worker
inherits it: who connects while there is none waits until the next one has begun.

The server is one thread, and nobody can hold it up: requests, answers, connections and the time that they take are bounded.
"""

import errno
import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from narcore.errors import StorePathError
from narcore.formats.storepath import StorePath
from narmount.daemon.control import NAMES_MAX, encode_line

REQUEST_MAX = 64 * 1024
CONNECTIONS_MAX = 64  # more wait to be accepted
WATCHERS_MAX = 48  # of those: the rest is for who asks for the status
UNREAD_MAX = 1 << 20  # of news for a watcher that does not read; then it is let go, and has to connect again
IDLE_SECONDS = 10.0  # so long nothing may move in a connection that is not watching

log = logging.getLogger("narmount")

Status = Callable[[], dict[str, object]]
Prefetch = Callable[[Sequence[str]], None]


class ControlServer:
    """Answers on ``listener``, which it takes over, in a thread of its own.

    ``status`` and ``prefetch`` are called in that thread, and have to return soon.
    """

    def __init__(self, listener: socket.socket, *, status: Status, prefetch: Prefetch) -> None:
        self._listener = listener
        self._status = status
        self._prefetch = prefetch
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._waking, self._waker = socket.socketpair()
        self._lock = threading.Lock()
        self._news: list[bytes] = []
        self._closing = self._accepting = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        for ours in (self._listener, self._waking, self._waker):
            ours.setblocking(False)
        self._selector.register(self._waking, selectors.EVENT_READ)
        self._thread.start()

    def announce(self, names: Sequence[str]) -> None:
        """Tell all watchers that there are store paths of these names now. From any thread; does not wait."""
        lines = [encode_line({"names": list(names[at : at + NAMES_MAX])}) for at in range(0, len(names), NAMES_MAX)]
        with self._lock:
            self._news += lines
        self._wake()

    def close(self) -> None:
        """End all connections. The socket goes on listening in whoever else holds it."""
        self._closing = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        for connection in self._connections:
            connection.socket.close()
        self._connections.clear()
        self._selector.close()
        for ours in (self._listener, self._waking, self._waker):
            ours.close()

    def _wake(self) -> None:
        with suppress(OSError):  # full: it has not yet heard of the last time; or closed
            self._waker.send(b"!")

    # --- the thread

    def _run(self) -> None:
        while not self._closing:
            self._accept_or_not()
            for key, events in self._selector.select(self._patience()):
                if key.fileobj is self._waking:
                    self._hear()
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._serve(key.data, events)
            now = time.monotonic()
            for connection in [one for one in self._connections if one.deadline <= now]:
                self._drop(connection)

    def _accept_or_not(self) -> None:
        """Those above the limit are left to wait in the backlog."""
        wanted = len(self._connections) < CONNECTIONS_MAX
        if wanted and not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._accepting and not wanted:
            self._selector.unregister(self._listener)
        self._accepting = wanted

    def _patience(self) -> float | None:
        first = min((connection.deadline for connection in self._connections), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
                time.sleep(0.1)  # the connection stays in the backlog, and would wake us at once
            return  # or it has gone again
        client.setblocking(False)
        connection = _Connection(client)
        self._connections.add(connection)
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            self._waking.recv(4096)
        with self._lock:
            news, self._news = b"".join(self._news), []
        for connection in [one for one in self._connections if one.watching]:
            self._send(connection, news)

    def _serve(self, connection: "_Connection", events: int) -> None:
        if connection not in self._connections:  # let go in the same round
            return
        if events & selectors.EVENT_WRITE:
            self._send(connection, b"")
        if events & selectors.EVENT_READ and connection in self._connections:
            self._receive(connection)

    def _receive(self, connection: "_Connection") -> None:
        try:
            data = connection.socket.recv(REQUEST_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or connection.answered:  # gone; or it says more than it was asked to
            self._drop(connection)
            return
        connection.request += data
        connection.moved()
        request, end, _ = connection.request.partition(b"\n")
        if len(request) > REQUEST_MAX:
            self._finish(connection, {"error": f"a request is one line of {REQUEST_MAX} bytes at most"})
        elif end:
            self._answer(connection, bytes(request))

    def _answer(self, connection: "_Connection", text: bytes) -> None:
        try:
            request = _parse(text)
            if request.get("do") == "watch":
                self._watch(connection)
                return
            self._finish(connection, self._do(request))
        except _BadRequest as error:
            self._finish(connection, {"error": str(error)})
        except Exception:
            log.exception("a request on the control socket")
            self._finish(connection, {"error": "something went wrong here; the log of the mount has the details"})

    def _do(self, request: dict[str, object]) -> dict[str, object]:
        match request.get("do"):
            case "status":
                return self._status()
            case "prefetch":
                self._prefetch(_names(request.get("names")))
                return {}
        raise _BadRequest('"do" has to be one of status, watch, prefetch')

    def _watch(self, connection: "_Connection") -> None:
        if sum(one.watching for one in self._connections) >= WATCHERS_MAX:
            raise _BadRequest(f"{WATCHERS_MAX} are watching already, and that is the limit")
        connection.watching = connection.answered = True
        self._send(connection, encode_line({"names": []}))

    def _finish(self, connection: "_Connection", answer: dict[str, object]) -> None:
        connection.answered = True
        self._send(connection, encode_line(answer))

    def _send(self, connection: "_Connection", data: bytes) -> None:
        """As much as the client takes now; the rest when it takes more. What is not a watcher is let go at the end."""
        connection.unsent += data
        try:
            count = connection.socket.send(connection.unsent)
        except BlockingIOError:
            count = 0
        except OSError:
            self._drop(connection)
            return
        del connection.unsent[:count]
        if count:
            connection.moved()
        if connection.unsent:
            if len(connection.unsent) > UNREAD_MAX and connection.watching:
                self._drop(connection)
                return
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        elif connection.watching:
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
            connection.deadline = float("inf")
        else:
            self._drop(connection)

    def _drop(self, connection: "_Connection") -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()


class _Connection:
    """``deadline``: when it is let go, by time.monotonic()."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.request = bytearray()
        self.unsent = bytearray()
        self.answered = self.watching = False
        self.deadline = 0.0
        self.moved()

    def moved(self) -> None:
        self.deadline = time.monotonic() + IDLE_SECONDS


class _BadRequest(Exception):
    """What the client is told."""


def _parse(text: bytes) -> dict[str, object]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BadRequest("a request is one line of JSON") from error
    if not isinstance(request, dict):
        raise _BadRequest("a request is one object of JSON")
    return request


def _names(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > NAMES_MAX:
        raise _BadRequest(f'"names" has to be a list of {NAMES_MAX} at most')
    for name in value:
        try:
            StorePath.from_base_name(name if isinstance(name, str) else "")
        except StorePathError as error:
            raise _BadRequest(f"{str(name)[:300]!r} is not the base name of a store path") from error
    return value
