"""How fast a client takes a response, and when it is too slow.

Progress means bytes that the client has acknowledged. Calls of ``send`` do not show progress, because the kernel buffers up to a
few megabytes per connection (tcp_wmem). It reports a socket as writable only when a third of the buffer is free. So even if a
client steadily takes 4 KiB/s, more than a minute can pass between two calls of ``send``.
"""

import fcntl
import socket
import struct
import termios
from collections import deque
from contextlib import suppress

# The minimum rate for a response that needs a thread. Without it, 64 slow clients could hold all threads of two workers. 1 KiB/s is
# a tenth of the rate of the slowest mobile networks (GPRS).
MINIMUM_RATE = 1024  # bytes per second
RATE_SECONDS = 60.0

# A response that needs no thread costs a few kilobytes, so there is no minimum rate for it. A client that acknowledges no byte for
# this many seconds is gone, stopped, or an attacker.
STALL_SECONDS = 300.0
STALL_CHECK_SECONDS = 15.0  # a system call per connection and check; 10,000 connections need 700 calls per second

_INT = struct.Struct("i")
_NO_LINGER = struct.pack("ii", 1, 0)


def unacknowledged(sock: socket.socket) -> int:
    """Return the number of bytes that were sent but that the client has not acknowledged (SIOCOUTQ in tcp(7)).

    Returns 0 where the system can't tell, such as macOS: then bytes count as acknowledged when they are sent.
    """
    try:
        # SIOCOUTQ has the number of TIOCOUTQ (linux/sockios.h).
        return int(_INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))[0])
    except OSError:
        return 0


def abort(sock: socket.socket) -> None:
    """Make the current and all later ``send`` calls fail, and make ``close`` reset the connection. Another thread may call this.

    Without a reset, the kernel would keep the unsent bytes after the close, and offer them to the client for minutes.
    """
    reset_on_close(sock)
    with suppress(OSError):  # the client has closed the connection
        sock.shutdown(socket.SHUT_RDWR)


def reset_on_close(sock: socket.socket) -> None:
    """Make ``close`` reset the connection, and discard the bytes that the client has not received."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


class Stall:
    """Detects that a client has acknowledged no byte for ``STALL_SECONDS``. All times are in seconds of one clock."""

    __slots__ = ("_acknowledged", "_since")

    def __init__(self, now: float) -> None:
        self._acknowledged = 0
        self._since = now

    def is_over(self, now: float, acknowledged: int) -> bool:
        """Return whether the client has stalled for too long. ``acknowledged`` is a number of bytes; only its changes matter."""
        if acknowledged != self._acknowledged:
            self._acknowledged = acknowledged
            self._since = now
        return now - self._since >= STALL_SECONDS


class SendRate:
    """Detects that a client takes less than ``MINIMUM_RATE`` over ``RATE_SECONDS``. To be called every few seconds."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def restart(self) -> None:
        """Start the measurement again, because the server did not wait for the client."""
        self._samples.clear()

    def is_too_low(self, now: float, acknowledged: int) -> bool:
        """Return whether the rate is too low. ``acknowledged`` is a number of bytes; only its changes matter."""
        samples = self._samples
        while len(samples) > 1 and now - samples[1][0] >= RATE_SECONDS:
            samples.popleft()
        samples.append((now, acknowledged))
        since, before = samples[0]
        return now - since >= RATE_SECONDS and acknowledged - before < MINIMUM_RATE * (now - since)


class SendingSocket:
    """The socket of a response that a thread sends. It counts the bytes, so that another thread can detect a slow client.

    ``sock`` has a timeout, so that ``send`` returns when it has sent a part. The timeout only needs to be longer than
    ``RATE_SECONDS``: ``is_too_slow`` decides when to give up.
    """

    __slots__ = ("_rate", "_sent", "_waiting", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._sent = 0
        self._waiting = False
        self._rate = SendRate()

    def sendall(self, data: bytes) -> None:
        """Send all bytes. Raises OSError if the client is gone, or after ``abort``."""
        rest = memoryview(data)
        self._waiting = True
        try:
            while rest:
                count = self.sock.send(rest)
                self._sent += count
                rest = rest[count:]
        finally:
            self._waiting = False

    def is_too_slow(self, now: float) -> bool:
        """Return whether the thread waits for a client that is too slow. To be called every few seconds by one other thread."""
        if not self._waiting:  # the thread waits for a store, or computes
            self._rate.restart()
            return False
        return self._rate.is_too_low(now, self._sent - unacknowledged(self.sock))
