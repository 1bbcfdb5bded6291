"""Files that an event loop sends: the bytes, the cuts, and clients that stop, drip or reset. Over TCP on the loopback interface."""

import logging
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from narcore.errors import CacheFailure
from narserve.server import filesender, iopool
from narserve.server.filesender import FileSender, SendState
from narserve.server.iopool import BLOCK_SIZE, IoPool
from narserve.server.progress import STALL_CHECK_SECONDS, STALL_SECONDS, abort, unacknowledged
from tests.clock import Clock

SIZE = 24 << 20  # more than the socket buffers of both sides hold
DATA = Random(7).randbytes(SIZE)
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Loop:
    """An event loop for one sender."""

    def __init__(self) -> None:
        self.calls: deque[Callable[[], None]] = deque()
        self.pool = IoPool(self.calls.append, threads=1)
        self.clock = Clock()
        self.states: list[SendState] = []
        self.resumed = 0

    def sender(self, sock: socket.socket, body: "Body", head: bytes = HEAD) -> FileSender:
        return FileSender(sock, head, body, self.pool, self._resume, self.clock)

    def _resume(self) -> None:
        self.resumed += 1

    def turn(self, sock: socket.socket, sender: FileSender) -> SendState:
        """Call the sender once the socket is writable, and let reads of the pool end. Returns BLOCKED if it is not writable."""
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_WRITE)
            if not selector.select(0.05):
                return SendState.BLOCKED
        state = sender.on_writable()
        self.states.append(state)
        if state is SendState.READING:
            self.finish_read()
        return state

    def finish_read(self) -> None:
        deadline = time.monotonic() + 10
        while not self.calls and time.monotonic() < deadline:
            time.sleep(0.001)
        self.calls.popleft()()

    def run(self, sock: socket.socket, sender: FileSender) -> SendState:
        """Run until the response is complete or cut, or the client takes no more."""
        blocked = 0
        while blocked < 2:
            before = len(self.states)
            state = self.turn(sock, sender)
            if state in (SendState.DONE, SendState.CUT):
                return state
            blocked = blocked + 1 if len(self.states) == before else 0
        return SendState.BLOCKED


@dataclass
class Body:
    """The body of a response, and its window of the file."""

    descriptor: int
    position: int
    stop: int
    changed: bool = False
    closed: int = 0
    checks: list[int] = field(default_factory=list)

    @property
    def filelike(self) -> "Body":
        return self

    def check_untouched(self) -> None:
        self.checks.append(self.position)
        if self.changed:
            raise CacheFailure("changed")

    def close(self) -> None:
        self.closed += 1
        if self.changed:
            raise CacheFailure("changed")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.pool.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("file") / "file"
    path.write_bytes(DATA)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def own_file(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    descriptor = os.open(path, os.O_RDONLY)
    yield path, descriptor
    os.close(descriptor)


Ends = tuple[socket.socket, socket.socket]


def connect() -> Ends:
    """Return the server's end, which does not block, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setblocking(False)
    client.settimeout(10)
    return server, client


@pytest.fixture
def ends() -> Iterator[Ends]:
    server, client = connect()
    with server, client:
        yield server, client


def drop_from_memory(descriptor: int) -> None:
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def replace_disk(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let nothing be in the page cache, and let each read take this long."""
    for module in (filesender, iopool):
        monkeypatch.setattr(module, "are_cached", lambda *_: False)
    monkeypatch.setattr(iopool, "read_pages", lambda *_: time.sleep(seconds))


def drain(client: socket.socket) -> bytes:
    """Receive what has arrived."""
    received = b""
    client.setblocking(False)
    with suppress(BlockingIOError):
        while data := client.recv(1 << 20):
            received += data
    client.settimeout(10)
    return received


def take(client: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size and (data := client.recv(min(1 << 20, size - len(received)))):
        received += data
    return bytes(received)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    start=st.integers(0, SIZE),
    length=st.one_of(st.integers(0, 5000), st.integers(0, 3 * BLOCK_SIZE)),
    aligned=st.booleans(),
    in_memory=st.booleans(),
)
def test_a_client_gets_the_head_and_exactly_the_window(
    file: int, loop: Loop, start: int, length: int, aligned: bool, in_memory: bool
) -> None:
    start = start // BLOCK_SIZE * BLOCK_SIZE if aligned else start
    stop = min(SIZE, start + length)
    if not in_memory:
        drop_from_memory(file)
    body = Body(file, start, stop)
    server, client = connect()
    with server, client:
        sender = loop.sender(server, body)
        received = b""
        while loop.turn(server, sender) is not SendState.DONE:
            received += drain(client)
        sender.close()
        sender.close()
        server.close()
        assert received + take(client, SIZE) == HEAD + DATA[start:stop]
    assert body.closed == 1


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_turn_sends_at_most_a_block_and_reads_first_what_is_not_in_memory(
    ends: Ends, loop: Loop, own_file: tuple[Path, int], in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = ends
    monkeypatch.setattr(filesender, "are_cached", lambda *_: in_memory)
    body = Body(own_file[1], 100, 100 + 3 * BLOCK_SIZE)
    sender = loop.sender(server, body)
    positions = [body.position]
    received = b""
    while (state := loop.turn(server, sender)) is not SendState.DONE:
        if state is SendState.READING:
            assert body.position == positions[-1], "nothing is sent until the file is read"
            assert loop.resumed
        else:
            positions.append(body.position)
        received += drain(client)
    positions.append(body.position)
    assert max(after - before for before, after in pairwise(positions)) <= BLOCK_SIZE
    assert loop.resumed == (0 if in_memory else 4), "blocks begin at multiples of their size"
    received += take(client, len(HEAD) + 3 * BLOCK_SIZE - len(received))
    assert received == HEAD + DATA[100 : 100 + 3 * BLOCK_SIZE]


def test_pages_count_as_cached_only_for_a_moment(
    ends: Ends, loop: Loop, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesender, "are_cached", lambda *_: False)
    server, client = ends
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sender = loop.sender(server, Body(file, 0, SIZE))
    assert loop.run(server, sender) is SendState.BLOCKED
    reads = loop.states.count(SendState.READING)
    loop.clock.now += 5
    drain(client)
    loop.run(server, sender)
    assert loop.states.count(SendState.READING) > reads


def test_a_client_that_stops_costs_no_memory_and_is_cut_after_the_limit(
    ends: Ends, loop: Loop, file: int, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = ends
    body = Body(file, 0, SIZE)
    sender = loop.sender(server, body)
    assert loop.run(server, sender) is SendState.BLOCKED
    limit = loop.clock.now + STALL_SECONDS
    while not sender.expired(loop.clock.now):
        loop.clock.now += STALL_CHECK_SECONDS
    assert limit <= loop.clock.now <= limit + STALL_CHECK_SECONDS
    assert "127.0.0.1: the client has acknowledged no byte for 300 s" in caplog.text
    abort(server)
    sender.close()
    server.close()
    with pytest.raises(ConnectionResetError):
        take(client, SIZE)
    assert body.closed == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system does not limit the queue")
def test_a_client_that_stops_has_few_bytes_in_the_queue_of_the_kernel(ends: Ends, loop: Loop, file: int) -> None:
    """All connections of a machine share the memory of TCP. Without a limit, the queue has 2 MB or more."""
    server, client = ends
    body = Body(file, 0, SIZE)
    sender = loop.sender(server, body)
    assert loop.run(server, sender) is SendState.BLOCKED
    assert unacknowledged(server) < 256 << 10
    while body.position < 4 << 20:
        loop.turn(server, sender)
        drain(client)
    assert loop.run(server, sender) is SendState.BLOCKED
    assert 256 << 10 < unacknowledged(server) < 2 << 20, "a fast client has a longer queue"
    sender.close()
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += server.send(DATA[: 1 << 18])
    assert unacknowledged(server) > 2 << 20, "the next response is not limited"


def test_a_slow_but_steady_client_is_never_cut(ends: Ends, loop: Loop, file: int) -> None:
    """With default buffers, the server sees no ``send`` for minutes: only acknowledgements show the progress."""
    server, client = ends
    body = Body(file, 0, SIZE)
    sender = loop.sender(server, body)
    assert loop.run(server, sender) is SendState.BLOCKED
    for _ in range(40):  # 4 KiB/s over 600 s
        loop.clock.now += STALL_CHECK_SECONDS
        take(client, int(STALL_CHECK_SECONDS) * 4096)
        time.sleep(0.002)  # for the acknowledgement
        assert not sender.expired(loop.clock.now)
        loop.turn(server, sender)


def test_a_disk_that_does_not_answer_is_named_as_the_reason(
    ends: Ends, loop: Loop, file: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_disk(monkeypatch, seconds=0.5)
    body = Body(file, 0, SIZE)
    sender = loop.sender(ends[0], body)
    assert sender.on_writable() is SendState.READING
    assert sender.on_writable() is SendState.READING, "the loop may ask at any time"
    assert not sender.expired(loop.clock.now + 100)
    sender.expired(loop.clock.now + 200)  # the client may acknowledge the head in between
    assert sender.expired(loop.clock.now + 200 + STALL_SECONDS)
    assert "127.0.0.1: the disk has read no byte for 300 s" in caplog.text
    sender.close()
    loop.finish_read()
    assert body.closed == 1


def test_a_response_that_is_closed_during_a_read_ends_when_the_descriptor_is_free(
    ends: Ends, loop: Loop, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_disk(monkeypatch, seconds=0.1)
    bodies = [Body(file, 0, SIZE), Body(file, 0, SIZE)]
    senders = [loop.sender(sock, body) for sock, body in zip(ends, bodies, strict=True)]
    assert [sender.on_writable() for sender in senders] == [SendState.READING, SendState.READING]
    time.sleep(0.02)  # the pool, which has one thread, begins the first read
    for sender in senders:
        sender.close()
    assert [body.closed for body in bodies] == [0, 1], "the second read was cancelled"
    loop.finish_read()
    assert [body.closed for body in bodies] == [1, 1]
    assert not loop.calls
    assert loop.resumed == 0


@pytest.mark.parametrize("when", ["at the start", "in the middle", "before the last blocks"])
@pytest.mark.parametrize("change", ["truncated", "changed"])
def test_a_file_that_changes_never_becomes_a_complete_response(
    ends: Ends, loop: Loop, own_file: tuple[Path, int], when: str, change: str
) -> None:
    server, client = ends
    path, descriptor = own_file
    length = 8 * BLOCK_SIZE
    body = Body(descriptor, 1000, 1000 + length)
    sender = loop.sender(server, body)
    received = b""
    wanted = {"at the start": 0, "in the middle": 4, "before the last blocks": 5}[when] * BLOCK_SIZE
    while body.position < wanted:
        loop.turn(server, sender)
        received += drain(client)
    if change == "truncated":
        os.truncate(path, 100)
    else:
        body.changed = True
    state = SendState.BLOCKED
    while state not in (SendState.DONE, SendState.CUT):
        state = loop.turn(server, sender)
        received += drain(client)
    assert state is SendState.CUT
    sender.close()
    server.close()
    with suppress(ConnectionResetError):
        while data := client.recv(1 << 20):
            received += data
    assert len(received) < len(HEAD) + length
    assert body.closed == 1


def test_a_file_that_changes_after_the_last_check_is_reported(ends: Ends, loop: Loop, file: int) -> None:
    server, _ = ends
    body = Body(file, 0, 5000)
    sender = loop.sender(server, body)
    assert loop.run(server, sender) is SendState.DONE
    assert body.checks == [0], "checked before the last bytes"
    body.changed = True
    assert not sender.close()


def test_a_fast_client_is_sent_several_blocks_per_turn(ends: Ends, loop: Loop, file: int) -> None:
    server, client = ends
    body = Body(file, 0, 64 * BLOCK_SIZE)
    sender = loop.sender(server, body)
    sizes = []
    while body.position < body.stop:
        before = body.position
        loop.turn(server, sender)
        sizes.append(body.position - before)
        drain(client)
    assert max(sizes[: filesender.FAST_SIZE // BLOCK_SIZE]) <= BLOCK_SIZE
    assert BLOCK_SIZE < max(sizes) <= filesender.FAST_BLOCKS * BLOCK_SIZE
    sender.close()


@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_goes_away_ends_the_response(ends: Ends, loop: Loop, file: int, reset: bool) -> None:
    server, client = ends
    body = Body(file, 0, SIZE)
    sender = loop.sender(server, body)
    take(client, 0)
    loop.turn(server, sender)
    if reset:
        abort(client)
    client.close()
    state = SendState.BLOCKED
    deadline = time.monotonic() + 10
    while state is SendState.BLOCKED and time.monotonic() < deadline:
        state = loop.turn(server, sender)
    assert state is SendState.CUT
    sender.close()
    assert body.closed == 1
    assert sender.on_writable() is SendState.CUT
    assert not sender.expired(loop.clock.now + 10 * STALL_SECONDS)


def test_a_head_that_does_not_fit_into_the_buffer_is_sent_in_parts(ends: Ends, loop: Loop, file: int) -> None:
    server, client = ends
    head = os.urandom(8 << 20)
    sender = loop.sender(server, Body(file, 5, 10), head)
    received = b""
    while loop.turn(server, sender) is not SendState.DONE:
        received += drain(client)
    assert received + take(client, len(head) + 5 - len(received)) == head + DATA[5:10]


def test_an_error_of_the_disk_cuts_the_response_and_is_logged(
    ends: Ends, loop: Loop, file: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "sendfile", fail)
    sender = loop.sender(ends[0], Body(file, 0, SIZE))
    assert loop.run(ends[0], sender) is SendState.CUT
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "cutting a response to 127.0.0.1: [Errno 5] Input/output error"
