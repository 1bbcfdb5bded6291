"""Clients that misbehave: one process that holds up to 10,000 connections, in one event loop.

`attacking` starts the process and waits until all clients are connected and have sent their requests. The process ends when its
standard input is closed, so also when its parent dies.
"""

import heapq
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import IO

from tests import ROOT

OPENING = 200  # connections that may be opened, but not established or answered, at the same time
ADDRESSES = 8  # loopback source addresses, since one address has only 28,000 ports, which stay in use for a minute
# Mean delay after the end of a connection. 200 clients that return faster, or all at once, would be a flood, and not slow clients.
REOPEN_SECONDS = 3.0
TICK_SECONDS = 0.02
STATUS_LINE = len("HTTP/1.1 200")
STANDING_SECONDS = 90.0
CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What every client of an attack does.

    A client sends one of ``requests`` (clients take turns), then the bytes of ``drip``, one each ``drip_seconds``. It reads
    ``rate`` bytes per second of the response: None reads all that arrives, 0 reads only the status line. After the server has
    ended its side, the client keeps its own side open for ``hold_seconds``. Some seconds later, it connects again.
    """

    requests: tuple[str, ...]
    count: int
    drip: str = ""
    drip_seconds: float = 3.0
    rate: int | None = None
    receive_buffer: int = 0  # SO_RCVBUF in bytes; 0 leaves it to the kernel
    hold_seconds: float = 0.0
    expect_answer: bool = False  # the attack stands when each client has got a status line


@dataclass(slots=True)
class Seen:
    """What the clients of an attack saw."""

    opened: int = 0
    standing_seconds: float = (
        0.0  # from the start until all clients were connected, and answered if the plan expects it
    )
    standing: bool = False
    statuses: dict[str, int] = field(default_factory=dict)  # of the first response on each connection
    ended: int = 0  # connections that the server ended
    reset: int = 0  # connections that the server reset, also while they were opened
    oldest: float = (
        0.0  # seconds from the first byte of a request to the end of the connection, or to the end of the attack
    )

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())


# ---- the parent's side


class Attack:
    """A running attack."""

    def __init__(self, process: "subprocess.Popen[str]", standing: Seen) -> None:
        self.process = process
        self.standing = standing
        """What the clients had seen when the attack stood, or after STANDING_SECONDS."""

    def stop(self) -> Seen:
        """End the attack; returns what the clients saw."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.stdout is not None
        found = _parse(self.process.stdout)
        assert self.process.wait(30) == 0, "the process of the attackers failed"
        return found


@contextmanager
def attacking(plan: Plan, port: int, standing_seconds: float = STANDING_SECONDS) -> Iterator[Attack]:
    """Run the attack on 127.0.0.1:``port``. Begins the ``with`` when it stands, at the latest after ``standing_seconds``."""
    command = [sys.executable, "-m", __name__, str(port), str(standing_seconds), json.dumps(asdict(plan))]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield Attack(process, _parse(process.stdout))
        finally:
            process.kill()


def _parse(lines: IO[str]) -> Seen:
    return Seen(**json.loads(lines.readline()))


# ---- the process


class _Client:
    """One connection. ``left`` has the bytes to drip; ``first_byte`` is the time when the request was sent."""

    __slots__ = ("established", "first_byte", "got", "left", "number", "reading", "sock")

    def __init__(self, number: int, sock: socket.socket, drip: bytes) -> None:
        self.number = number
        self.sock = sock
        self.left = drip
        self.established = False
        self.first_byte = 0.0
        self.got = b""  # the status line
        self.reading = True


class _Attackers:
    def __init__(self, plan: Plan, port: int, standing_seconds: float) -> None:
        self._plan = plan
        self._address = ("127.0.0.1", port)
        self._seen = Seen()
        self._selector = selectors.DefaultSelector()
        self._started = time.monotonic()
        self._standing_until = self._started + standing_seconds
        self._to_open = [(self._started, number) for number in range(plan.count)]  # a heap
        # Each of these queues is in the order of the times in it, because all of its delays are equal.
        self._to_drip: deque[tuple[float, _Client]] = deque()
        self._to_read: deque[tuple[float, _Client]] = deque()
        self._to_close: deque[tuple[float, _Client]] = deque()
        self._clients: set[_Client] = set()
        self._unready: set[_Client] = set()  # clients that are not connected or not answered
        self._buffer = bytearray(CHUNK)

    def run(self) -> Seen:
        """Attack until standard input is closed."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(TICK_SECONDS):
                if key.data is None:
                    return self._end()
                self._on_event(key.data)
            now = time.monotonic()
            self._do_due(now)
            if not self._seen.standing_seconds and (self._stands() or now > self._standing_until):
                self._seen.standing = self._stands()
                self._seen.standing_seconds = now - self._started
                _print(self._seen)

    def _stands(self) -> bool:
        return not self._unready and self._seen.opened >= self._plan.count

    def _do_due(self, now: float) -> None:
        while self._to_open and self._to_open[0][0] <= now and len(self._unready) < OPENING:
            self._open(heapq.heappop(self._to_open)[1])
        for queue, act in ((self._to_drip, self._drip), (self._to_read, self._read), (self._to_close, self._close)):
            while queue and queue[0][0] <= now:
                client = queue.popleft()[1]
                if client in self._clients:
                    act(client)

    def _open(self, number: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        if self._plan.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._plan.receive_buffer)
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        sock.bind((f"127.0.0.{2 + number % ADDRESSES}", 0))
        client = _Client(number, sock, self._plan.drip.encode())
        self._seen.opened += 1
        self._clients.add(client)
        self._unready.add(client)
        sock.connect_ex(self._address)
        self._selector.register(sock, selectors.EVENT_WRITE, client)

    def _on_event(self, client: _Client) -> None:
        if client not in self._clients:
            return
        if client.established:
            self._read(client)
        elif client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_end(client, reset=True)
        else:
            self._send_request(client)

    def _send_request(self, client: _Client) -> None:
        plan = self._plan
        client.established = True
        client.first_byte = time.monotonic()
        request = plan.requests[client.number % len(plan.requests)].encode()
        try:
            assert client.sock.send(request) == len(request) if request else True
        except OSError:
            return self._on_end(client, reset=True)
        self._selector.modify(client.sock, selectors.EVENT_READ, client)
        if client.left:
            self._to_drip.append((client.first_byte + plan.drip_seconds, client))
        if not plan.expect_answer:
            self._unready.discard(client)
        return None

    def _drip(self, client: _Client) -> None:
        try:
            client.left = client.left[client.sock.send(client.left[:1]) :]
        except BlockingIOError:
            pass
        except OSError:
            return self._on_end(client, reset=True)
        if client.left:
            self._to_drip.append((time.monotonic() + self._plan.drip_seconds, client))
        return None

    def _read(self, client: _Client) -> None:
        """Read what the plan allows now. Called when the socket is readable, and once a second for a client with a rate."""
        if not client.reading:
            return None
        if len(client.got) < STATUS_LINE:
            limit = STATUS_LINE - len(client.got)
        else:
            limit = CHUNK if self._plan.rate is None else self._plan.rate
        try:
            size = client.sock.recv_into(self._buffer, limit)
        except BlockingIOError:
            size = -1
        except OSError:
            return self._on_end(client, reset=True)
        if size == 0:
            return self._on_end(client, reset=False)
        if size > 0 and len(client.got) < STATUS_LINE:
            self._on_status(client, bytes(self._buffer[:size]))
        elif self._plan.rate:
            self._to_read.append((time.monotonic() + 1, client))
        return None

    def _on_status(self, client: _Client, data: bytes) -> None:
        client.got += data
        if len(client.got) < STATUS_LINE:
            return
        status = client.got[-3:].decode("latin-1")
        self._seen.statuses[status] = self._seen.statuses.get(status, 0) + 1
        self._unready.discard(client)
        if self._plan.rate is not None:
            self._selector.unregister(client.sock)  # a socket that is readable all the time would keep the loop busy
        if self._plan.rate:
            self._to_read.append((time.monotonic() + 1, client))

    def _on_end(self, client: _Client, *, reset: bool) -> None:
        """The server has ended or reset the connection."""
        if client.first_byte:
            self._seen.oldest = max(self._seen.oldest, time.monotonic() - client.first_byte)
        self._unready.discard(client)
        client.reading = False
        with suppress(KeyError):
            self._selector.unregister(client.sock)
        if reset:
            self._seen.reset += 1
            self._close(client)
        else:
            self._seen.ended += 1
            self._to_close.append((time.monotonic() + self._plan.hold_seconds, client))

    def _close(self, client: _Client) -> None:
        client.sock.close()
        self._clients.discard(client)
        delay = REOPEN_SECONDS * (0.5 + client.number / self._plan.count)
        heapq.heappush(self._to_open, (time.monotonic() + delay, client.number))

    def _end(self) -> Seen:
        now = time.monotonic()
        for client in self._clients:
            if client.reading and client.first_byte:
                self._seen.oldest = max(self._seen.oldest, now - client.first_byte)
            client.sock.close()
        self._selector.close()
        return self._seen


def _print(seen: Seen) -> None:
    print(json.dumps(asdict(seen)), flush=True)


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit of open files to its hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Attack as the arguments say: PORT SECONDS PLAN. Prints `Seen` when the attack stands, and at the end."""
    raise_descriptor_limit()
    plan = json.loads(sys.argv[3])
    plan["requests"] = tuple(plan["requests"])
    seen = _Attackers(Plan(**plan), int(sys.argv[1]), float(sys.argv[2])).run()
    _print(seen)
    sys.stdout.flush()
    os._exit(0)  # closing thousands of sockets one by one has been done; nothing is left to clean up


if __name__ == "__main__":
    main()
