"""All connections of a worker: their timeouts, and the threads that answer their requests."""

import logging
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from gunicorn.config import Config
from gunicorn.http.message import Request

from narcore.concurrency.closing import close
from narserve.server.connection import Connection, InThread
from narserve.server.iopool import IoPool
from narserve.server.loop import Loop, Timeouts
from narserve.server.progress import STALL_CHECK_SECONDS, SendingSocket
from narserve.server.requesthead import Address, ReceivedRequest
from narserve.server.responder import Answer, BufferedOutput, ClientGone, Output, Responder

log = logging.getLogger("narserve.server")

# How often, in seconds, the loop checks whether the client of a thread is too slow. SendingSocket measures the rate over a minute.
THREAD_CHECK_SECONDS = 5.0

# The timeout of a ``send`` that makes no progress, in seconds. It does not affect a client that takes 1 KiB/s: in less than half of
# this time, such a client frees a third of a send buffer of 4 MB (tcp_wmem). SendingSocket notices slower clients.
SEND_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds."""

    connections: int
    threads: int
    # nginx and the load balancers of AWS keep idle connections for 60 seconds. The server keeps them longer, so that it does not
    # close a connection while a proxy sends a request on it. Browsers and load balancers also open connections before they have a
    # request for them.
    waiting: float = 75.0
    head: float = 10.0  # a head is one to three packets, sent at once
    draining: float = 5.0
    flushing: float = 10.0
    lingering: float = 2.0
    stopping: float = 2.0  # how long a stopping worker waits for a request that a client may be sending
    # A client sends its request right after the TCP handshake. Until the request arrives, but at most for this long, a new
    # connection counts as if it occupied a thread. A worker therefore accepts only as many connections as it can answer at once.
    young: float = 0.005


class Connections:
    """The open connections. ``where`` returns the threads that answer a request, or None for the loop itself.

    All methods belong to the thread of the loop. ``threads``, one of the results of ``where``, has ``limits.threads`` threads.
    ``on_free_thread`` is called when a thread becomes free, or when a new connection no longer counts as if it occupied a thread.
    """

    def __init__(
        self,
        loop: Loop,
        responder: Responder,
        config: Config,
        io_pool: IoPool,
        limits: Limits,
        threads: Executor,
        where: Callable[[Request], Executor | None],
    ) -> None:
        self.loop = loop
        self.responder = responder
        self.config = config
        self.io_pool = io_pool
        self._limits = limits
        self._threads = threads
        self._where = where
        self._open: set[Connection] = set()
        self._is_stopping = False
        self.on_free_thread: Callable[[], None] = lambda: None
        self.waiting = loop.timeouts(limits.waiting, Connection.expired)
        self.heads = loop.timeouts(limits.head, Connection.expired)
        self.draining = loop.timeouts(limits.draining, Connection.expired)
        self.flushing = loop.timeouts(limits.flushing, Connection.expired)
        self.lingering = loop.timeouts(limits.lingering, Connection.expired)
        self.files = loop.timeouts(STALL_CHECK_SECONDS, Connection.expired)
        self._in_threads = loop.timeouts(THREAD_CHECK_SECONDS, Connection.expired)
        self._in_other_threads = loop.timeouts(THREAD_CHECK_SECONDS, Connection.expired)
        self._young: Timeouts[Connection] = loop.timeouts(limits.young, self._not_young)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def has_free_thread(self) -> bool:
        return len(self._in_threads) + len(self._young) < self._limits.threads

    @property
    def has_room(self) -> bool:
        """Whether one more connection is allowed, or an idle connection can be closed for it."""
        return len(self._open) < self._limits.connections or bool(self.waiting)

    def add(self, sock: socket.socket, client: Address) -> None:
        """Take over a new connection. If there are now too many connections, close the one that has been idle longest."""
        connection = Connection(self, sock, client)
        self._open.add(connection)
        self._young.start(connection, self.loop.now)
        connection.read_request()
        connection.ready()
        if len(self._open) > self._limits.connections:
            self.close_longest_idle()

    def close_longest_idle(self) -> bool:
        """Close the connection that has waited for a request longest. Returns False if there is none."""
        connection = self.waiting.first()
        if connection is not None:
            connection.close()
        return connection is not None

    def stop(self) -> None:
        """Let each connection end after its next response, or if no request begins within ``stopping`` seconds (see Limits)."""
        self._is_stopping = True
        self.waiting.shorten(self._limits.stopping, self.loop.now)

    def close(self) -> None:
        """Reset all connections, so that no client takes a partial response for a complete one."""
        for connection in list(self._open):
            connection.abort()

    def _not_young(self, _connection: Connection) -> None:
        self.on_free_thread()

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._young.stop(connection)

    def answer(self, connection: Connection, request: ReceivedRequest) -> None:
        """Call the application, in the loop or in a thread."""
        self._young.stop(connection)
        executor = self._where(request.request)
        if executor is None:
            connection.answered(request, *self._buffered(connection, request))
        elif executor is self._threads:
            sending = SendingSocket(connection.sock)
            connection.go_on(InThread(connection, self._in_threads, sending))
            connection.sock.settimeout(SEND_SECONDS)
            executor.submit(self._answer_in_thread, connection, request, sending)
        else:
            connection.go_on(InThread(connection, self._in_other_threads, None))
            executor.submit(self._answer_in_other_thread, connection, request)

    def _answer_in_thread(self, connection: Connection, request: ReceivedRequest, sending: SendingSocket) -> None:
        answer = self._answer(connection, request, _SocketOutput(sending))
        answered = partial(self._answered_in_thread, connection, request, answer)
        self.loop.call_soon(partial(connection.guard, answered))

    def _answered_in_thread(self, connection: Connection, request: ReceivedRequest, answer: Answer) -> None:
        self.on_free_thread()
        if connection not in self._open:
            close(answer.file)
            return
        connection.sock.setblocking(False)
        connection.answered(request, answer)

    def _answer_in_other_thread(self, connection: Connection, request: ReceivedRequest) -> None:
        answered = partial(connection.answered, request, *self._buffered(connection, request))
        self.loop.call_soon(partial(connection.guard, answered))

    def _buffered(self, connection: Connection, request: ReceivedRequest) -> tuple[Answer, bytes]:
        output = BufferedOutput()
        return self._answer(connection, request, output), output.data

    def _answer(self, connection: Connection, request: ReceivedRequest, output: Output) -> Answer:
        must_close = self._is_stopping or request.body_left is None
        try:
            return self.responder.answer(request.request, connection.client, output, must_close=must_close)
        except ClientGone:
            return Answer(keep=False, cut=True)
        except Exception:
            log.exception("can't answer a request; closing its connection")
            return Answer(keep=False, cut=True)


class _SocketOutput:
    def __init__(self, sending: SendingSocket) -> None:
        self._sending = sending

    def sendall(self, data: bytes) -> None:
        try:
            self._sending.sendall(data)
        except OSError as error:
            raise ClientGone from error
