"""When a client is too slow: the rate of responses that need a thread, measured by acknowledged bytes over TCP."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narserve.server.progress import (
    MINIMUM_RATE,
    RATE_SECONDS,
    SendingSocket,
    SendRate,
    Stall,
    abort,
    unacknowledged,
)

BODY = bytes(32 << 20)  # more than the socket buffers of both sides hold
CHECK_SECONDS = 5.0

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.settimeout(300)
    client.settimeout(10)
    with server, client:
        yield server, client


class Sending:
    """A thread that sends a body. ``error`` is why it failed."""

    def __init__(self, sock: socket.socket) -> None:
        self.output = SendingSocket(sock)
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.output.sendall(BODY)
        except OSError as error:
            self.error = error

    def ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


def receive(client: socket.socket, size: int) -> None:
    while size and (data := client.recv(min(size, 1 << 20))):
        size -= len(data)


def wait_until_full(sending: Sending, server: socket.socket) -> None:
    before = -1
    while (now := unacknowledged(server)) != before or not now:
        before = now
        time.sleep(0.02)
    assert not sending.ended(0)


def seconds_until_too_slow(sending: Sending, client: socket.socket, *, rate: int, limit: float) -> float:
    """Let the client take ``rate`` bytes per second of a clock that does not wait; return when it is too slow."""
    now = 0.0
    while now < limit and not sending.output.is_too_slow(now):
        receive(client, int(rate * CHECK_SECONDS))
        time.sleep(0.002)  # for the acknowledgement
        now += CHECK_SECONDS
    return now


def test_acknowledged_bytes_are_those_that_the_client_has_received(ends: Ends) -> None:
    server, client = ends
    assert unacknowledged(server) == 0
    server.setblocking(False)
    sent = server.send(BODY)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    assert 0 < unacknowledged(server) < sent
    receive(client, sent)
    time.sleep(0.05)
    assert unacknowledged(server) == 0


def test_everything_counts_as_acknowledged_where_the_system_can_not_tell() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        assert unacknowledged(sock) == 0


@pytest.mark.parametrize("rate", [0, MINIMUM_RATE // 2])
def test_a_client_below_the_rate_is_too_slow_after_a_minute_and_abort_ends_the_thread(ends: Ends, rate: int) -> None:
    server, client = ends
    sending = Sending(server)
    wait_until_full(sending, server)
    assert RATE_SECONDS <= seconds_until_too_slow(sending, client, rate=rate, limit=600) <= 2 * RATE_SECONDS
    abort(server)
    assert sending.ended(5)
    assert sending.error is not None
    server.close()
    with pytest.raises(ConnectionResetError):
        receive(client, len(BODY))


def test_a_client_above_the_rate_is_never_too_slow(ends: Ends) -> None:
    """The buffers of both sides hold megabytes, so that most checks see no ``send``."""
    server, client = ends
    sending = Sending(server)
    wait_until_full(sending, server)
    try:
        assert seconds_until_too_slow(sending, client, rate=4096, limit=900) == 900
    finally:
        abort(server)
    assert sending.ended(5)


def test_a_thread_that_waits_for_a_store_is_not_blamed_on_the_client(ends: Ends) -> None:
    server, client = ends
    output = SendingSocket(server)
    output.sendall(b"x" * 1000)
    assert not any(output.is_too_slow(seconds) for seconds in range(0, 1000, 5))
    assert client.recv(2000) == b"x" * 1000


def test_abort_of_a_closed_connection_does_nothing(ends: Ends) -> None:
    server, client = ends
    client.close()
    server.close()
    abort(server)


@given(st.lists(st.tuples(st.floats(1, 20), st.integers(0, 40_000)), min_size=20, max_size=60))
def test_a_rate_is_too_low_if_and_only_if_the_last_minute_has_too_few_bytes(steps: list[tuple[float, int]]) -> None:
    rate, now, acknowledged = SendRate(), 0.0, 0
    history: list[tuple[float, int]] = []
    for seconds, size in steps:
        now, acknowledged = now + seconds, acknowledged + size
        history.append((now, acknowledged))
        old = [sample for sample in history if now - sample[0] >= RATE_SECONDS]
        too_low = bool(old) and acknowledged - old[-1][1] < MINIMUM_RATE * (now - old[-1][0])
        assert rate.is_too_low(now, acknowledged) == too_low


def test_a_stall_begins_at_the_last_acknowledgement() -> None:
    stall = Stall(0.0)
    assert not stall.is_over(299.0, 0)
    assert stall.is_over(300.0, 0)
    assert not stall.is_over(310.0, 1)
    assert not stall.is_over(609.0, 1)
    assert stall.is_over(610.0, 1)
