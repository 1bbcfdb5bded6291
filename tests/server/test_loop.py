"""The event loop of a worker: slow clients, limits, and applications that fail."""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from narcore.errors import CacheFailure
from narserve.server.connections import Limits
from narserve.server.listener import listen
from narserve.server.loop import LATER_SECONDS, WRITE, WRITE_SECONDS, Loop
from tests.server.looping import running_loop
from tests.server.rawhttp import RawClient
from tests.server.serving import eventually

LIMITS = Limits(connections=100, threads=2)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
PAGE = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def ok(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class Blocking:
    """An application whose pages wait until ``may_go_on`` is set."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        assert environ["PATH_INFO"] == "/healthz" or self.may_go_on.wait(20)
        return ok(environ, start_response)


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    app = Blocking()
    yield app
    app.may_go_on.set()


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        (replace(LIMITS, waiting=0.3), b""),
        (replace(LIMITS, waiting=0.3), HEALTH),
        (replace(LIMITS, head=0.3), b"GET / HTTP/1.1\r\nHost"),
        (replace(LIMITS, head=0.3), HEALTH + b"GET"),
        (replace(LIMITS, draining=0.3), b"POST /healthz HTTP/1.1\r\nContent-Length: 3\r\n\r\n"),
        (replace(LIMITS, lingering=0.3), LAST_HEALTH),
    ],
    ids=["silent", "kept-alive", "partial-head", "partial-second-head", "missing-body", "open-after-close"],
)
def test_a_client_that_stops_is_disconnected_after_the_time_of_its_step(limits: Limits, sent: bytes) -> None:
    with running_loop(ok, limits) as loop, RawClient(loop.port) as client:
        started = time.monotonic()
        client.send(sent)
        eventually(lambda: len(loop.connections) == 1)
        eventually(lambda: len(loop.connections) == 0)
        assert 0.2 < time.monotonic() - started < 3
        assert client.rest().startswith(b"HTTP/1.1 200" if sent in (HEALTH, LAST_HEALTH) else b"")


def test_the_time_of_a_head_is_not_prolonged_by_more_bytes() -> None:
    with running_loop(ok, replace(LIMITS, head=0.5)) as loop, RawClient(loop.port) as client:
        started = time.monotonic()
        with suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100:
                client.send(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - started < 3


def test_health_checks_are_answered_while_all_threads_are_busy(blocking: Blocking) -> None:
    with running_loop(blocking, LIMITS) as loop, ExitStack() as clients:
        waiting = [clients.enter_context(RawClient(loop.port)) for _ in range(10)]
        for client in waiting:
            client.send(PAGE)
        started = time.monotonic()
        for _ in range(5):
            with RawClient(loop.port) as client:
                assert client.ask(HEALTH) == 200
        assert time.monotonic() - started < 2
        blocking.may_go_on.set()
        assert [client.status() for client in waiting] == [200] * 10


def test_a_request_does_not_wait_for_a_busy_worker_while_another_has_a_free_thread(blocking: Blocking) -> None:
    listener = listen("127.0.0.1", 0)
    limits = replace(LIMITS, threads=1)
    with (
        running_loop(blocking, limits, listener.dup()) as busy,
        RawClient(busy.port) as blocked,
    ):
        blocked.send(PAGE)
        eventually(lambda: not busy.connections.has_free_thread)
        with running_loop(ok, limits, listener):
            for _ in range(30):
                with RawClient(busy.port) as client:
                    assert client.ask(PAGE) == 200
        blocking.may_go_on.set()


def test_at_the_limit_the_connection_that_has_been_idle_longest_is_closed() -> None:
    with running_loop(ok, replace(LIMITS, connections=3)) as loop, ExitStack() as clients:
        first, second, third = (clients.enter_context(RawClient(loop.port)) for _ in range(3))
        for client in (second, third, first):
            assert client.ask(HEALTH) == 200
        with RawClient(loop.port) as fourth:
            assert fourth.ask(HEALTH) == 200
            assert second.rest() == b""
            assert first.is_open()
            assert third.is_open()


def test_at_the_limit_without_an_idle_connection_a_new_one_waits(blocking: Blocking) -> None:
    with running_loop(blocking, replace(LIMITS, connections=2)) as loop, ExitStack() as clients:
        busy = [clients.enter_context(RawClient(loop.port)) for _ in range(2)]
        for client in busy:
            client.send(PAGE)
        eventually(lambda: not loop.connections.has_room)
        with RawClient(loop.port) as client:
            client.send(HEALTH)
            client.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.status()
            client.socket.settimeout(10)
            blocking.may_go_on.set()
            assert client.status() == 200
        assert [client.status() for client in busy] == [200, 200]


class FullListener(socket.socket):
    """A listener whose ``accept`` fails ``failures`` times because too many files are open."""

    failures = 5
    calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_too_many_open_files_pause_accepting(caplog: pytest.LogCaptureFixture) -> None:
    listener = FullListener(fileno=listen("127.0.0.1", 0).detach())
    with running_loop(ok, LIMITS, listener) as loop, RawClient(loop.port) as client:
        started = time.monotonic()
        assert client.ask(HEALTH) == 200
        assert time.monotonic() - started > 0.3  # five pauses, not a busy loop
    assert caplog.text.count("Too many open files") == 1


def failing(chunks: int, *headers: tuple[str, str]) -> Callable[..., Iterator[bytes]]:
    """Return an application that raises after ``chunks`` chunks of its body."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", list(headers))
        for _ in range(chunks):
            yield b"chunk"
        raise ValueError("a bug")

    return app


def test_an_error_before_the_first_byte_is_a_500() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        raise ValueError("a bug")

    with running_loop(app, LIMITS) as loop:
        for request in (PAGE, HEALTH):
            with RawClient(loop.port) as client:
                assert client.ask(request) == 500


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("headers", [[], [("Content-Length", "100")]])
def test_an_error_in_the_body_is_never_a_clean_end(version: bytes, headers: list[tuple[str, str]]) -> None:
    with running_loop(failing(3, *headers), LIMITS) as loop, RawClient(loop.port) as client:
        client.send(PAGE.replace(b"1.1", version))
        try:
            received = client.rest()
        except ConnectionResetError:
            return
        assert received.startswith(b"HTTP/")
        assert not received.endswith(b"0\r\n\r\n")
        assert headers or b"chunked" in received


def test_a_stopping_worker_answers_what_the_kernel_has_accepted_and_then_closes(blocking: Blocking) -> None:
    with running_loop(blocking, replace(LIMITS, connections=200)) as loop, ExitStack() as clients:
        kept = clients.enter_context(RawClient(loop.port))
        assert kept.ask(HEALTH) == 200
        slow = clients.enter_context(RawClient(loop.port))
        slow.send(PAGE)
        eventually(lambda: len(loop.connections) == 2)
        new: list[RawClient] = []

        def stop() -> None:
            new.extend(clients.enter_context(RawClient(loop.port)) for _ in range(100))
            loop.connections.stop()
            loop.acceptor.stop()

        loop.call(stop)
        for client in new:
            client.send(HEALTH)
        for client in (*new, kept):
            client.status() if client in new else client.ask(HEALTH)
            assert client.rest() == b""
        eventually(lambda: loop.acceptor.is_closed)
        blocking.may_go_on.set()
        assert slow.status() == 200
        assert slow.rest() == b""
        eventually(lambda: len(loop.connections) == 0)


def test_silent_connections_do_not_delay_the_stop() -> None:
    with running_loop(ok, replace(LIMITS, stopping=0.2)) as loop, RawClient(loop.port) as client:
        eventually(lambda: len(loop.connections) == 1)
        loop.call(loop.connections.stop)
        assert client.rest() == b""


class ChangedAtTheEnd:
    """A file that is changed after the server has passed its last bytes to the kernel."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.position = 0
        self.stop = path.stat().st_size

    def check_untouched(self) -> None:
        pass

    def close(self) -> None:
        os.close(self.descriptor)
        raise CacheFailure("changed")


def test_a_file_that_changes_while_it_is_sent_is_never_a_clean_end(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(b"wrong")

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [("Content-Length", "5")])
        return environ["wsgi.file_wrapper"](ChangedAtTheEnd(file))

    with running_loop(app, LIMITS) as loop, RawClient(loop.port) as client:
        client.send(PAGE)
        with pytest.raises(ConnectionResetError):
            client.rest()


class SlowCalls:
    """A loop whose clock only moves on while it makes a call, by ``seconds`` per call."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.made = 0
        self.loop = Loop(lambda: self.now)
        self._seconds = seconds

    def call(self) -> None:
        self.made += 1
        self.now += self._seconds


def test_connections_can_be_written_to_although_other_calls_take_long() -> None:
    calls = SlowCalls(2 * WRITE_SECONDS)
    written = threading.Event()
    first, second = socket.socketpair()
    with closing(calls.loop), first, second:
        calls.loop.watch(first.fileno(), WRITE, written.set)
        calls.loop.call_soon(calls.call)
        calls.loop.turn(0)
        assert calls.made == 1
        assert written.is_set()


def test_the_ends_of_many_responses_take_a_limited_time_of_each_turn() -> None:
    calls = SlowCalls(LATER_SECONDS / 2)
    with closing(calls.loop):
        for _ in range(5):
            calls.loop.call_later(calls.call)
        made = []
        for _ in range(3):
            calls.loop.turn(60)  # does not wait while calls are left
            made.append(calls.made)
        assert made == [2, 4, 5]


@pytest.fixture(autouse=True)
def _no_bugs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert "closing the connection of" not in "".join(record.message for record in caplog.get_records("call"))
