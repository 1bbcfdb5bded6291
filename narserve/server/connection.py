"""A connection of a client, and the steps that it goes through in the event loop.

::

    ReadingHead     waits for a request, and for the end of its head
    InThread        waits for a thread that writes the response
    SendingFile     sends a response whose body is a file in the disk cache
    Flushing        sends a small response of the server itself
    Draining        receives and discards the rest of the body of a request, to reach the next request
    Lingering       the server has closed its side, and waits until the client closes the other side

No step blocks the loop: it handles the event that has occurred, and returns to the loop.
"""

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from gunicorn.config import Config

from narserve.server.filesender import FileSender, SendState
from narserve.server.iopool import IoPool
from narserve.server.loop import READ, WRITE, Loop, Timeouts
from narserve.server.progress import SendingSocket, abort, reset_on_close
from narserve.server.requesthead import Address, ReceivedRequest, can_be_parsed
from narserve.server.responder import Answer, Responder

log = logging.getLogger("narserve.server")

RECEIVE_SIZE = 16 * 1024

# A client may keep sending a large body although the server has refused the request. If the server closed the connection meanwhile,
# the client could lose the response (RFC 9112 9.6). So the server first receives and discards up to this many bytes.
MAX_LINGERED = 1 << 20


class Owner(Protocol):
    """The part of ``Connections`` that a connection uses, including the timeouts of each step."""

    loop: Loop
    responder: Responder
    config: Config
    io_pool: IoPool
    waiting: "Timeouts[Connection]"
    heads: "Timeouts[Connection]"
    files: "Timeouts[Connection]"
    flushing: "Timeouts[Connection]"
    draining: "Timeouts[Connection]"
    lingering: "Timeouts[Connection]"

    def answer(self, connection: "Connection", request: ReceivedRequest) -> None:
        """Call the application, and then ``Connection.answered``."""

    def closed(self, connection: "Connection") -> None: ...


class Step(Protocol):
    """What a connection waits for. ``events`` is READ, WRITE, or 0 for a step that waits for a call from another thread."""

    @property
    def events(self) -> int: ...
    @property
    def timeouts(self) -> "Timeouts[Connection]": ...
    def ready(self) -> None:
        """Handle the bytes that the socket has received, or write to its free buffer space."""

    def expired(self) -> None:
        """Handle the timeout of this step."""


class Connection:
    """One connection. All methods belong to the thread of the event loop."""

    __slots__ = ("_step", "_watched", "client", "owner", "received", "sock")

    def __init__(self, owner: Owner, sock: socket.socket, client: Address) -> None:
        self.owner = owner
        self.sock = sock
        self.client = client
        self.received = bytearray()  # the beginning of the next request
        self._step: Step | None = None
        self._watched = 0

    def ready(self) -> None:
        if self._step is not None:
            self.guard(self._step.ready)

    def expired(self) -> None:
        if self._step is not None:
            self.guard(self._step.expired)

    def guard(self, call: Callable[[], object]) -> None:
        """Call a function. If it has a bug, only this connection ends, not the event loop with all connections."""
        try:
            call()
        except Exception:
            log.exception("closing the connection of %s", self.client[0])
            self.close()

    def go_on(self, step: Step) -> None:
        """Change to the next step. The loop calls the step when the socket is ready for it."""
        if self._step is not None:
            self._step.timeouts.stop(self)
        self._step = step
        step.timeouts.start(self, self.owner.loop.now)
        if step.events:
            self.watch(step.events)

    def read_request(self) -> None:
        """Wait for the next request. If some of its bytes were already received, the next turn of the loop handles them."""
        self.go_on(ReadingHead(self))
        if self.received:
            self.owner.loop.call_soon(partial(self.guard, self._handle_received))

    def _handle_received(self) -> None:
        if isinstance(self._step, ReadingHead) and can_be_parsed(self.received, 0):
            self.begin_request()

    def begin_request(self) -> None:
        """Parse the head that was received, and answer the request, or refuse it."""
        received = bytes(self.received)
        self.received = bytearray()
        try:
            request = ReceivedRequest.parse(received, self.owner.config, self.client)
        except Exception as error:  # noqa: BLE001  logged, and the client is told
            self.flush(self.owner.responder.refusal(error, self.client), keep=False)
            return
        self.received += request.rest
        self.owner.answer(self, request)

    def answered(self, request: ReceivedRequest, answer: Answer, buffered: bytes = b"") -> None:
        """Send the rest of a response, after the application was called. ``buffered`` is a whole response, or empty."""
        if answer.file is not None:
            self.go_on(step := SendingFile(self, request, answer))
            step.ready()
        elif buffered:
            self.flush(buffered, keep=answer.keep, body_left=request.body_left)
        elif answer.cut:
            self.abort()
        else:
            self.finish(keep=answer.keep, body_left=request.body_left)

    def flush(self, data: bytes, *, keep: bool, body_left: int | None = 0) -> None:
        """Send a small response."""
        self.go_on(step := Flushing(self, data, keep=keep, body_left=body_left))
        step.ready()

    def receive(self, size: int) -> bytes | None:
        """Receive at most ``size`` bytes: None if there are none yet, and no bytes if the client has closed the connection."""
        try:
            return self.sock.recv(size)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def finish(self, *, keep: bool, body_left: int | None = 0) -> None:
        """End a response that was sent."""
        if not keep or body_left is None:
            self.linger()
        elif body_left:
            self.go_on(Draining(self, body_left))
        else:
            self.read_request()

    def linger(self) -> None:
        """Close this side of the connection, and wait for the client to close the other side."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
        else:
            self.go_on(Lingering(self))

    def abort(self) -> None:
        """Reset the connection, so that the client does not take a partial response for a complete one."""
        reset_on_close(self.sock)
        self.close()

    def cut(self, end_response: Callable[[], object]) -> None:
        """Call ``end_response`` and reset the connection when the loop has time. This can wait: the client is probably gone."""
        self._leave_step()
        self.owner.loop.call_later(partial(self.guard, end_response))
        self.owner.loop.call_later(partial(self.guard, self.abort))

    def close(self) -> None:
        self._leave_step()
        with suppress(OSError):
            self.sock.close()
        self.owner.closed(self)

    def _leave_step(self) -> None:
        if self._step is not None:
            self._step.timeouts.stop(self)
            self._step = None
        self.unwatch()

    def unwatch(self) -> None:
        if self._watched:
            self.owner.loop.forget(self.sock.fileno())
            self._watched = 0

    def watch(self, events: int) -> None:
        loop = self.owner.loop
        if not self._watched:
            loop.watch(self.sock.fileno(), events, self.ready)
        elif self._watched != events:
            loop.watch_for(self.sock.fileno(), events, self.ready)
        self._watched = events


class ReadingHead:
    """Waits for a request. The timeout for the first byte is that of an idle connection; the rest of the head has a shorter one."""

    __slots__ = ("_connection", "timeouts")
    events = READ

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        owner = connection.owner
        self.timeouts: Timeouts[Connection] = owner.heads if connection.received else owner.waiting

    def ready(self) -> None:
        connection = self._connection
        data = connection.receive(RECEIVE_SIZE)
        if data is None:
            return
        if not data:
            # If a request was pipelined and can be parsed, the next turn answers it.
            if not can_be_parsed(connection.received, 0):
                connection.close()
            return
        before = len(connection.received)
        connection.received += data
        if can_be_parsed(connection.received, before):
            connection.begin_request()
        elif not before:
            connection.go_on(ReadingHead(connection))

    def expired(self) -> None:
        self._connection.close()


class InThread:
    """Waits for a thread that writes the response. Cuts the response if the client is too slow.

    The loop may still watch the socket, because stopping and restarting the watch costs two system calls per request. The
    watch only has to stop if the client sends something or closes the connection in the meantime.
    """

    __slots__ = ("_connection", "_sending", "timeouts")
    events = 0

    def __init__(self, connection: Connection, timeouts: Timeouts[Connection], sending: SendingSocket | None) -> None:
        self._connection = connection
        self._sending = sending
        self.timeouts = timeouts

    def ready(self) -> None:
        self._connection.unwatch()

    def expired(self) -> None:
        now = self._connection.owner.loop.now
        if self._sending is not None and self._sending.is_too_slow(now):
            log.warning("cutting a response to %s: the client takes less than 1 KiB/s", self._connection.client[0])
            abort(self._connection.sock)  # the thread gets an error, and ends the response
        self.timeouts.start(self._connection, now)


class SendingFile:
    """Sends a response whose body is a file."""

    __slots__ = ("_connection", "_keep", "_request", "_sender", "timeouts")
    events = 0

    def __init__(self, connection: Connection, request: ReceivedRequest, answer: Answer) -> None:
        owner = connection.owner
        self._connection = connection
        self._request = request
        self._keep = answer.keep
        self._sender = FileSender(
            connection.sock, answer.head, answer.file, owner.io_pool, self.ready, owner.loop.clock
        )
        self.timeouts = owner.files

    def ready(self) -> None:
        state = self._sender.on_writable()
        if state is SendState.BLOCKED:
            self._connection.watch(WRITE)
        elif state is SendState.READING:
            self._connection.unwatch()
        else:
            self._end(state)

    def expired(self) -> None:
        now = self._connection.owner.loop.now
        if self._sender.expired(now):
            self._end(SendState.CUT)
        else:
            self.timeouts.start(self._connection, now)

    def _end(self, state: SendState) -> None:
        if state is not SendState.DONE:
            self._connection.cut(self._sender.close)
        elif self._sender.close():
            self._connection.finish(keep=self._keep, body_left=self._request.body_left)
        else:
            self._connection.abort()


class Flushing:
    """Sends a small response that is in memory."""

    __slots__ = ("_body_left", "_connection", "_data", "_keep", "timeouts")
    events = 0

    def __init__(self, connection: Connection, data: bytes, *, keep: bool, body_left: int | None) -> None:
        self._connection = connection
        self._data = data
        self._keep = keep
        self._body_left = body_left
        self.timeouts = connection.owner.flushing

    def ready(self) -> None:
        try:
            self._data = self._data[self._connection.sock.send(self._data) :]
        except BlockingIOError:
            pass
        except OSError:
            self._connection.close()
            return
        if self._data:
            self._connection.watch(WRITE)
        else:
            self._connection.finish(keep=self._keep, body_left=self._body_left)

    def expired(self) -> None:
        self._connection.abort()


class Draining:
    """Receives and discards the rest of the body of a request. A client that takes too long for it is disconnected."""

    __slots__ = ("_connection", "_left", "timeouts")
    events = READ

    def __init__(self, connection: Connection, left: int) -> None:
        self._connection = connection
        self._left = left
        self.timeouts = connection.owner.draining

    def ready(self) -> None:
        data = self._connection.receive(min(self._left, RECEIVE_SIZE))
        if data is None:
            return
        self._left -= len(data)
        if not data:
            self._connection.close()
        elif not self._left:
            self._connection.read_request()

    def expired(self) -> None:
        self._connection.close()


class Lingering:
    """Receives and discards what the client still sends, until the client closes the connection."""

    __slots__ = ("_connection", "_left", "timeouts")
    events = READ

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = MAX_LINGERED
        self.timeouts = connection.owner.lingering

    def ready(self) -> None:
        data = self._connection.receive(RECEIVE_SIZE)
        if data is None:
            return
        self._left -= len(data)
        if not data or self._left <= 0:
            self._connection.close()

    def expired(self) -> None:
        self._connection.close()
