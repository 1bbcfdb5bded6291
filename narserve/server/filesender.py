"""Sends a part of a file to a client from the event loop of a worker, without a thread."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import Protocol

from narcore.errors import NarcoreError
from narserve.server.iopool import BLOCK_SIZE, IoPool, Read, are_cached
from narserve.server.progress import STALL_SECONDS, Stall, unacknowledged

log = logging.getLogger("narserve.server")

# Some file systems can't tell whether bytes are in the page cache. On these file systems, bytes that the pool has read count as
# cached for this many seconds after their first use. If memory is scarce, the kernel may drop the bytes sooner; then the loop waits
# for the disk once.
CACHED_SECONDS = 1.0

# How many bytes the kernel queues for a connection before they can be sent (TCP_NOTSENT_LOWAT in tcp(7)). By default, it queues up
# to 4 MB. All TCP connections of a machine share a limit (tcp_mem, a tenth of the memory). With the default, 600 stopped readers
# would therefore slow down every connection of a machine with 24 GB. A client that has taken the first FAST_SIZE bytes may be fast,
# so it gets a longer queue. This queue must not run empty before the next turn of the loop, which other threads may delay by 5 ms
# or more.
UNSENT_SIZE = 64 * 1024
FAST_UNSENT_SIZE = 1024 * 1024
FAST_SIZE = 1024 * 1024
FAST_BLOCKS = 4  # sent or read at once for a fast client: fewer turns of the loop and fewer checks of the page cache
_UNSENT_OPTION = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # on Linux and macOS

_MORE = getattr(socket, "MSG_MORE", 0)  # on Linux: the head and the first bytes of the file share a packet


class SendState(Enum):
    """What a sender waits for."""

    DONE = auto()  # nothing: the kernel has all bytes
    BLOCKED = auto()  # the socket must be writable
    READING = auto()  # the pool must read a part of the file; ``on_readable`` is called afterwards
    CUT = auto()  # nothing: the response can't be completed, and the connection must be closed


class Window(Protocol):
    """The part of a file to send, such as ``api.responses.body.FileWindow``. Offsets are in bytes from the start of the file."""

    descriptor: int
    position: int  # the first byte that is not sent
    stop: int

    def check_untouched(self) -> None:
        """Raise NarcoreError if the file was changed since it was opened."""


class FileBody(Protocol):
    """The body of a WSGI response whose application used ``wsgi.file_wrapper``."""

    @property
    def filelike(self) -> Window: ...

    def close(self) -> None:
        """End the response: its line in the access log, its metrics, its descriptor."""


class FileSender:
    """Sends ``head`` and then the window of ``body`` over a non-blocking socket.

    Each call of ``on_writable`` sends at most one block, or FAST_BLOCKS to a fast client.

    All methods belong to the thread of the event loop. Nothing is read into the memory of the process. The last block is sent only
    if the file is unchanged at that moment, so that a file that was changed never becomes a complete response. The kernel sends
    from the page cache, so a write to the file can still change bytes that the kernel has queued. Closing the body detects earlier
    writes, but can't detect a later write.

    ``on_readable`` is called in the loop when the state READING has ended; the loop then calls ``on_writable``. ``clock`` returns
    seconds. The sender does not close the socket.
    """

    __slots__ = (
        "_body", "_cached", "_clock", "_fast_at", "_has_limit", "_head", "_on_readable", "_pool", "_read", "_sock", "_stall",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        head: bytes,
        body: FileBody,
        pool: IoPool,
        on_readable: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sock = sock
        self._head = head  # the part that is not sent
        self._body: FileBody | None = body
        self._pool = pool
        self._on_readable = on_readable
        self._read: Read | None = None
        self._clock = clock
        # An offset and a time: the pool has read the file up to the offset, and these bytes count as cached until the time.
        self._cached = 0, 0.0
        self._stall = Stall(clock())
        self._fast_at = body.filelike.position + FAST_SIZE
        self._has_limit = body.filelike.stop - body.filelike.position > UNSENT_SIZE
        if self._has_limit:
            self._limit_unsent(UNSENT_SIZE)

    def on_writable(self) -> SendState:
        """Send as much as the socket takes, within the limit of one call."""
        if self._body is None:
            return SendState.CUT
        if self._read is not None:
            return SendState.READING
        try:
            return self._send(self._body.filelike)
        except BlockingIOError:
            return SendState.BLOCKED
        except (ConnectionError, TimeoutError):  # the client is gone
            return SendState.CUT
        except NarcoreError:  # closing the body checks the file again, and logs the error
            return SendState.CUT
        except OSError as error:
            log.warning("cutting a response to %s: %s", self._client(), error)
            return SendState.CUT

    def expired(self, now: float) -> bool:
        """Return whether the client or the disk has stalled; if so, log it. To be called every ``STALL_CHECK_SECONDS`` seconds."""
        if self._body is None:
            return False
        sent = self._body.filelike.position - len(self._head)
        if not self._stall.is_over(now, sent - unacknowledged(self._sock)):
            return False
        reason = "the client has acknowledged no byte" if self._read is None else "the disk has read no byte"
        log.warning("cutting a response to %s: %s for %.0f s", self._client(), reason, STALL_SECONDS)
        return True

    def close(self) -> bool:
        """End the response, in any state. If the pool is reading from the file, the response ends when the pool has finished.

        Returns False if the file has changed: then the client may have wrong bytes, and the connection must be reset.
        """
        if self._read is None or self._read.cancel():
            return self._end_body()
        self._on_readable = self._end_body
        return True

    def _send(self, window: Window) -> SendState:
        start = window.position
        blocks = FAST_BLOCKS if start >= self._fast_at else 1
        stop = min(window.stop, (start // BLOCK_SIZE + blocks) * BLOCK_SIZE)
        if self._head and not self._send_head(more=start < stop):
            return SendState.BLOCKED
        if start == stop:
            return SendState.DONE
        if not self._is_in_memory(window.descriptor, start, stop):
            self._read = self._pool.submit(window.descriptor, start, stop, partial(self._on_read, stop))
            return SendState.READING
        if stop == window.stop:
            window.check_untouched()
        count = os.sendfile(self._sock.fileno(), window.descriptor, start, stop - start)
        if not count:  # the file was truncated; closing the body logs it
            return SendState.CUT
        window.position += count
        if start < self._fast_at <= window.position:
            self._limit_unsent(FAST_UNSENT_SIZE)
        return SendState.DONE if window.position == window.stop else SendState.BLOCKED

    def _send_head(self, *, more: bool) -> bool:
        """Send the head. Returns whether the whole head is sent."""
        count = self._sock.send(self._head, _MORE if more else 0)
        self._head = self._head[count:]
        return not self._head

    def _limit_unsent(self, size: int) -> None:
        if _UNSENT_OPTION is not None:
            with suppress(OSError):  # the client is gone
                self._sock.setsockopt(socket.IPPROTO_TCP, _UNSENT_OPTION, size)

    def _is_in_memory(self, descriptor: int, start: int, stop: int) -> bool:
        offset, until = self._cached
        now = self._clock()
        if stop <= offset and now < until:
            self._cached = offset, min(until, now + CACHED_SECONDS)
            return True
        return are_cached(descriptor, start, stop)

    def _on_read(self, stop: int) -> None:
        self._read = None
        self._cached = stop, math.inf  # no time limit before the first use, which may be late in a busy loop
        self._on_readable()

    def _end_body(self) -> bool:
        body, self._body = self._body, None
        if body is None:
            return True
        if self._has_limit:
            self._limit_unsent(0)  # the default, for the next response
        try:
            body.close()
        except NarcoreError:  # the body has logged it
            return False
        return True

    def _client(self) -> str:
        try:
            return str(self._sock.getpeername()[0])
        except OSError:
            return "a client that is gone"
