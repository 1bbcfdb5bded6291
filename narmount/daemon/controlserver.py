"""The server of a mount's control socket: status, news of names that have appeared, and requests to prefetch.

A client sends one line of JSON, and gets lines of JSON back::

    {"do": "status"}                        the status, as one line
    {"do": "watch"}                         {"names": []} immediately, then {"names": [...]} when missing names appear
    {"do": "prefetch", "names": [...]}      {} when the closures of these store paths (base names) are in the queue

The answer to a wrong request is ``{"error": "..."}``. The holder opens the listening socket, and each worker inherits it. If
a client connects while there is no worker, the client waits for the next worker.

The server is one thread. No client can block it, because the size of requests and answers, the number of connections, and their
time are limited.
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
CONNECTIONS_MAX = 64  # further connections wait in the backlog
WATCHERS_MAX = 48  # connections that watch; the other connections are for requests
UNREAD_MAX = 1 << 20  # bytes of news that a watcher has not read; above this, its connection is closed
IDLE_SECONDS = 10.0  # without traffic, a connection that does not watch is closed

log = logging.getLogger("narmount")

Status = Callable[[], dict[str, object]]
Prefetch = Callable[[Sequence[str]], None]


class ControlServer:
    """Answers requests on ``listener``, which it closes at the end, in its own thread.

    ``status`` and ``prefetch`` are called in that thread and must not block.
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
        """Tell all watchers that store paths of these names have appeared. Any thread may call this. The call does not block."""
        lines = [encode_line({"names": list(names[at : at + NAMES_MAX])}) for at in range(0, len(names), NAMES_MAX)]
        with self._lock:
            self._news += lines
        self._wake()

    def close(self) -> None:
        """Close all connections. The socket keeps listening in other processes that have it open."""
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
        with suppress(OSError):  # the buffer is full, so the thread wakes up anyway; or the socket is closed
            self._waker.send(b"!")

    # --- the thread

    def _run(self) -> None:
        while not self._closing:
            self._limit_accepting()
            for key, events in self._selector.select(self._seconds_left()):
                if key.fileobj is self._waking:
                    self._send_news()
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._serve(key.data, events)
            now = time.monotonic()
            for connection in [each for each in self._connections if each.deadline <= now]:
                self._drop(connection)

    def _limit_accepting(self) -> None:
        """Accept connections below the limit; above it, they wait in the backlog."""
        accepting = len(self._connections) < CONNECTIONS_MAX
        if accepting and not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._accepting and not accepting:
            self._selector.unregister(self._listener)
        self._accepting = accepting

    def _seconds_left(self) -> float | None:
        """Return the seconds until the first connection times out, or None if no connection has a timeout."""
        first = min((connection.deadline for connection in self._connections), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
                time.sleep(0.1)  # the connection stays in the backlog, and select would return immediately
            return  # or the client has already closed the connection
        client.setblocking(False)
        connection = _Connection(client)
        self._connections.add(connection)
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _send_news(self) -> None:
        with suppress(BlockingIOError):
            self._waking.recv(4096)
        with self._lock:
            news, self._news = b"".join(self._news), []
        for connection in [each for each in self._connections if each.watching]:
            self._send(connection, news)

    def _serve(self, connection: "_Connection", events: int) -> None:
        if connection not in self._connections:  # closed earlier in the same round
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
        if not data or connection.answered:  # the client has closed the connection, or sent more than one request
            self._drop(connection)
            return
        connection.request += data
        connection.extend()
        request, end, _ = connection.request.partition(b"\n")
        if len(request) > REQUEST_MAX:
            self._finish(connection, {"error": f"a request is one line of at most {REQUEST_MAX} bytes"})
        elif end:
            self._answer(connection, bytes(request))

    def _answer(self, connection: "_Connection", text: bytes) -> None:
        try:
            self._finish(connection, self._do(connection, _parse(text)))
        except _BadRequest as error:
            self._finish(connection, {"error": str(error)})
        except Exception:
            log.exception("a request on the control socket failed")
            self._finish(connection, {"error": "internal error; the log of the mount has the details"})

    def _do(self, connection: "_Connection", request: dict[str, object]) -> dict[str, object]:
        match request.get("do"):
            case "status":
                return self._status()
            case "prefetch":
                self._prefetch(_names(request.get("names")))
                return {}
            case "watch":
                if sum(each.watching for each in self._connections) >= WATCHERS_MAX:
                    raise _BadRequest(f"{WATCHERS_MAX} clients are watching already, which is the limit")
                connection.watching = True
                return {"names": []}
        raise _BadRequest('"do" has to be one of status, watch, prefetch')

    def _finish(self, connection: "_Connection", answer: dict[str, object]) -> None:
        connection.answered = True
        self._send(connection, encode_line(answer))

    def _send(self, connection: "_Connection", data: bytes) -> None:
        """Send as much as the socket takes now, and the rest later. At the end, close the connection unless it watches."""
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
            connection.extend()
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
    """A connection of a client. The server closes it at ``deadline``, a time of time.monotonic()."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.request = bytearray()
        self.unsent = bytearray()
        self.answered = self.watching = False
        self.deadline = 0.0
        self.extend()

    def extend(self) -> None:
        self.deadline = time.monotonic() + IDLE_SECONDS


class _BadRequest(Exception):
    """A wrong request. The message is for the client."""


def _parse(text: bytes) -> dict[str, object]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BadRequest("a request is one line of JSON") from error
    if not isinstance(request, dict):
        raise _BadRequest("a request is a JSON object")
    return request


def _names(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > NAMES_MAX:
        raise _BadRequest(f'"names" has to be a list of at most {NAMES_MAX} names')
    for name in value:
        try:
            StorePath.from_base_name(name if isinstance(name, str) else "")
        except StorePathError as error:
            raise _BadRequest(f"{str(name)[:300]!r} is not the base name of a store path") from error
    return value
