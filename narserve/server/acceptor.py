"""Accepts connections for a worker: while the worker has a free thread, or if no worker has a free thread."""

import errno
import logging
import select
import socket

from narserve.server.connections import Connections
from narserve.server.listener import BACKLOG
from narserve.server.loop import READ, Loop

log = logging.getLogger("narserve.server")

# All workers wait for connections on one socket, and the first one to accept gets the connection. A worker whose threads are all
# busy lets the others go first, and checks every BUSY_SECONDS whether connections wait. If connections wait at BUSY_CHECKS checks
# in a row, the other workers are busy too. Then the worker accepts up to BUSY_BATCH connections, because the loop may be able to
# answer them (/healthz).
BUSY_SECONDS = 0.007
BUSY_CHECKS = 3
BUSY_BATCH = 16

# How long a worker stops accepting, in seconds, when it has too many connections or open files and no idle connection to close.
FULL_SECONDS = 0.1

# Connections accepted in one turn of the loop, so that a flood of connections does not keep the loop from its other work.
BATCH = 64

# How long a stopping worker still accepts connections, in seconds. The master already refuses new connections, but some clients may
# be in the middle of the TCP handshake, which takes a few round trips.
STOP_SECONDS = 0.2

WARN_SECONDS = 60.0

# accept(2): too many open files in the process or in the system, or not enough memory.
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts connections from the listener, which it owns. All methods belong to the thread of the loop."""

    def __init__(self, loop: Loop, listener: socket.socket, connections: Connections) -> None:
        self._loop = loop
        self._listener = listener
        self._connections = connections
        self._is_watching = False
        self._is_stopping = False
        self._next_warning = 0.0
        self._waited = 0  # how many checks in a row found waiting connections
        self._busy = loop.timeouts(BUSY_SECONDS, Acceptor._check)
        self._full = loop.timeouts(FULL_SECONDS, Acceptor._watch)
        self._stopping = loop.timeouts(STOP_SECONDS, Acceptor._close)
        listener.setblocking(False)
        connections.on_free_thread = self._go_on
        self._watch()

    @property
    def is_closed(self) -> bool:
        return self._listener.fileno() < 0

    def stop(self) -> None:
        """Accept, for STOP_SECONDS, the connections that the kernel has queued for the listener, then close the listener.

        When the listener is closed, the kernel resets the connections that are still in the queue.
        """
        self._is_stopping = True
        self._stopping.start(self, self._loop.now)
        self._watch()
        self._accept_some(BATCH)

    def _accept(self) -> None:
        """Accept while a thread is free, or, in a stopping worker, without regard to the threads."""
        for _ in range(BATCH):
            if self._must_wait():
                self._pause()
                if self not in self._busy:
                    self._busy.start(self, self._loop.now)
                return
            if not self._accept_one():
                return

    def _accept_some(self, count: int) -> None:
        for _ in range(count):
            if not self._accept_one():
                return

    def _check(self) -> None:
        """Accept connections although this worker has no free thread, if all other workers are busy too."""
        self._waited = self._waited + 1 if self._has_waiting() else 0
        if self._waited >= BUSY_CHECKS:
            self._accept_some(BUSY_BATCH)
        if self._waited or self._must_wait():
            self._busy.start(self, self._loop.now)
        if not self._must_wait():
            self._go_on()

    def _has_waiting(self) -> bool:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return bool(poll.poll(0))

    def _go_on(self) -> None:
        if not self.is_closed and self not in self._full:
            self._watch()

    def _must_wait(self) -> bool:
        return not self._is_stopping and not self._connections.has_free_thread

    def _accept_one(self) -> bool:
        """Accept one connection. Returns whether the caller may try to accept another one."""
        if not self._connections.has_room:
            self._wait_for_room("the limit of connections is reached (NAR_MAX_CONNECTIONS)")
            return False
        try:
            sock, client = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _FULL:
                return True  # the client has already disconnected, or the network had an error: see accept(2)
            if self._connections.close_longest_idle():
                return True
            self._wait_for_room(error.strerror or str(error))
            return False
        sock.setblocking(False)
        self._connections.add(sock, client[:2])  # without the scope of IPv6
        return True

    def _wait_for_room(self, reason: str) -> None:
        self._pause()
        self._full.start(self, self._loop.now)
        if self._loop.now >= self._next_warning:
            self._next_warning = self._loop.now + WARN_SECONDS
            log.warning("%s, and no connection is idle: new connections wait", reason)

    def _watch(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            self._loop.watch(self._listener.fileno(), READ, self._accept)

    def _pause(self) -> None:
        if self._is_watching:
            self._is_watching = False
            self._loop.forget(self._listener.fileno())

    def _close(self) -> None:
        self._accept_some(BACKLOG)
        self._pause()
        for timeouts in (self._busy, self._full):
            timeouts.stop(self)
        self._listener.close()
