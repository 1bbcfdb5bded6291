"""The control socket: its answers, and clients that are slow, greedy or broken."""

import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from narcore.errors import MountError
from narmount.daemon import controlserver
from narmount.daemon.control import (
    NAMES_MAX,
    ask_prefetch,
    control_path,
    is_abandoned,
    make_run_dir,
    read_status,
    watch,
)
from narmount.daemon.controlserver import CONNECTIONS_MAX, REQUEST_MAX, WATCHERS_MAX, ControlServer
from tests import builders

SECONDS = 10.0
NAME = builders.store_path("hello-2.12").base_name


class Running:
    """A server, the listening socket that outlives it, and the requests that it got."""

    def __init__(self, run_dir: Path) -> None:
        make_run_dir(run_dir)
        self.path = control_path(run_dir, Path("/nix/store"))
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(64)
        self.status: dict[str, object] = {"target": "/nix/store"}
        self.prefetched: list[str] = []
        self.server = self.worker()

    def worker(self) -> ControlServer:
        server = ControlServer(self.listener.dup(), status=self.get_status, prefetch=self.prefetch)
        server.start()
        return server

    def get_status(self) -> dict[str, object]:
        if "raise" in self.status:
            raise RuntimeError("a bug")
        return self.status

    def prefetch(self, names: Sequence[str]) -> None:
        self.prefetched += names

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SECONDS)
        client.connect(str(self.path))
        return client

    def ask(self, request: bytes) -> dict[str, object]:
        with self.connect() as client:
            with suppress(ConnectionError):  # the server does not read all of it
                client.sendall(request)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        found: dict[str, object] = json.loads(answer)
        return found


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    one = Running(tmp_path)
    yield one
    one.server.close()
    one.listener.close()


def watching(running: Running) -> Iterator[list[str]]:
    news = watch(running.path)
    assert next(news) == []
    return news


def test_the_status_is_returned_unchanged(running: Running) -> None:
    running.status = {"target": "/nix/\udcff", "counts": {"LOOKUP": 3}, "stores": ["x" * 300_000]}
    assert read_status(running.path, SECONDS) == running.status


def test_news_reach_all_watchers(running: Running) -> None:
    watchers = [watching(running) for _ in range(3)]
    running.server.announce(["a"])
    running.server.announce(["b", "c"])
    for news in watchers:
        assert next(news) + next(news) == ["a", "b", "c"]
    many = [f"name-{number}" for number in range(2 * NAMES_MAX + 1)]
    running.server.announce(many)
    assert [len(next(watchers[0])) for _ in range(3)] == [NAMES_MAX, NAMES_MAX, 1]
    running.server.announce([])  # nothing is sent
    running.server.announce(["d"])
    assert next(watchers[0]) == ["d"]


def test_names_to_prefetch_reach_the_worker(running: Running) -> None:
    names = [builders.store_path(f"x-{number}").base_name for number in range(NAMES_MAX + 5)]
    ask_prefetch(running.path, names, SECONDS)
    assert running.prefetched == names
    ask_prefetch(running.path, [], SECONDS)


# --- workers come and go


def test_a_client_that_connects_between_two_workers_waits(running: Running) -> None:
    running.server.close()
    answers: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: answers.append(read_status(running.path, SECONDS)))
    asking.start()
    time.sleep(0.2)
    assert not answers
    assert not is_abandoned(running.path)
    running.server = running.worker()
    asking.join(SECONDS)
    assert answers == [running.status]


def test_watching_ends_with_the_worker_and_works_with_the_next(running: Running) -> None:
    news = watching(running)
    running.server.close()
    assert list(news) == []
    running.server = running.worker()
    again = watching(running)
    running.server.announce(["x"])
    assert next(again) == ["x"]


def test_a_worker_that_hangs_is_an_error_after_the_timeout(running: Running) -> None:
    running.server.close()
    began = time.monotonic()
    with pytest.raises(MountError, match=r"has not answered within 0\.2 seconds; if this persists"):
        read_status(running.path, 0.2)
    assert time.monotonic() - began < SECONDS / 2
    running.server = running.worker()


def test_close_and_announce_do_nothing_after_close(running: Running) -> None:
    running.server.close()
    running.server.close()
    running.server.announce(["x"])


def test_a_server_that_was_never_started_can_be_closed(running: Running) -> None:
    ControlServer(running.listener.dup(), status=dict, prefetch=print).close()


# --- no process listens


def test_a_missing_socket_is_an_error_with_a_next_step(running: Running) -> None:
    with pytest.raises(MountError, match="is nar-serve mount running for that directory"):
        read_status(running.path.with_name("other.sock"), SECONDS)
    with pytest.raises(MountError, match="is nar-serve mount running for that directory"):
        read_status(running.path.parent / "nowhere/other.sock", SECONDS)
    assert not is_abandoned(running.path.with_name("other.sock"))


def test_a_socket_without_a_listener_is_a_dead_mount(running: Running) -> None:
    running.server.close()
    running.listener.close()
    assert is_abandoned(running.path)
    for ask in (
        lambda: read_status(running.path, SECONDS),
        lambda: ask_prefetch(running.path, [NAME], SECONDS),
        lambda: next(watch(running.path)),
    ):
        with pytest.raises(MountError, match="has died; mount that directory again"):
            ask()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed the connection"),
        (b"{", "an incomplete answer"),
        (b"[]\n", "does not understand"),
        (b'{"error": "no"}\n', "refused the request: no"),
    ],
)
def test_invalid_answers_are_errors(tmp_path: Path, answer: bytes, said: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve() -> None:
            for _ in range(2):
                client, _ = listener.accept()
                with client:
                    client.recv(REQUEST_MAX)
                    client.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(MountError, match=said):
            read_status(tmp_path / "s", SECONDS)
        if answer.endswith(b"\n"):
            with pytest.raises(MountError, match=said):
                list(watch(tmp_path / "s"))
        else:
            assert list(watch(tmp_path / "s")) == []
        serving.join()


# --- invalid requests


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        (b"\n", "one line of JSON"),
        (b"\xff\n", "one line of JSON"),
        (b"[" * 50_000 + b"\n", "one line of JSON"),
        (b"[]\n", "a JSON object"),
        (b"{}\n", "status, watch, prefetch"),
        (b'{"do": []}\n', "status, watch, prefetch"),
        (b'{"do": "stop"}\n', "status, watch, prefetch"),
        (b'{"do": "prefetch"}\n', "has to be a list"),
        (b'{"do": "prefetch", "names": "x"}\n', "has to be a list"),
        (b'{"do": "prefetch", "names": ["../../etc"]}\n', "not the base name"),
        (b'{"do": "prefetch", "names": [1]}\n', "not the base name"),
        (json.dumps({"do": "prefetch", "names": [""] * (NAMES_MAX + 1)}).encode() + b"\n", "at most 1000"),
        (b"x" * (REQUEST_MAX + 1), "at most 65536 bytes"),
        (b"x" * (4 * REQUEST_MAX), "at most 65536 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_invalid_request_gets_an_error(running: Running, request_line: bytes, said: str) -> None:
    try:
        answer = running.ask(request_line)
    except ConnectionResetError:  # the rest of the request was still in flight
        assert len(request_line) > REQUEST_MAX
    else:
        assert said in str(answer["error"])
    assert running.prefetched == []
    assert read_status(running.path, SECONDS) == running.status


def test_an_internal_error_does_not_end_the_server(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    bugs: tuple[dict[str, object], ...] = ({"raise": True}, {"x": object()})
    for bug in bugs:
        running.status = bug
        with pytest.raises(MountError, match="the log of the mount"):
            read_status(running.path, SECONDS)
    running.status = {"good": 1}
    assert read_status(running.path, SECONDS) == {"good": 1}
    assert len(caplog.records) == 2


def test_a_request_may_arrive_in_pieces(running: Running) -> None:
    with running.connect() as client:
        for byte in b'{"do":"status"}\n':
            client.send(bytes([byte]))
            time.sleep(0.001)
        assert json.loads(client.recv(65536)) == running.status


# --- clients that could block the server


def test_an_idle_client_is_disconnected(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlserver, "IDLE_SECONDS", 0.3)
    with running.connect() as silent, running.connect() as halting:
        halting.send(b'{"do"')
        assert read_status(running.path, SECONDS) == running.status
        assert silent.recv(1) == b""
        assert halting.recv(1) == b""


def test_a_client_that_does_not_read_its_answer_is_disconnected(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlserver, "IDLE_SECONDS", 0.3)
    running.status = {"long": "x" * 3_000_000}
    with running.connect() as client:
        client.sendall(b'{"do": "status"}\n')
        time.sleep(1)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert 0 < len(received) < 3_000_000
    assert len(read_status(running.path, SECONDS)) == 1


def test_a_watcher_that_does_not_read_is_disconnected(running: Running) -> None:
    with running.connect() as lazy:
        lazy.sendall(b'{"do": "watch"}\n')
        news = watching(running)
        names = ["x" * 200] * NAMES_MAX
        for _ in range(20):
            running.server.announce(names)
            assert next(news) == names
        disconnected = select.poll()
        disconnected.register(lazy, select.POLLRDHUP)
        assert disconnected.poll(SECONDS * 1000)
        received = b"".join(iter(lambda: lazy.recv(65536), b""))
    assert len(received) < 4_000_000


def test_an_idle_watcher_stays_connected(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlserver, "IDLE_SECONDS", 0.1)
    news = watching(running)
    time.sleep(0.5)
    running.server.announce(["x"])
    assert next(news) == ["x"]


def test_the_connection_of_a_watcher_that_leaves_is_closed(running: Running) -> None:
    for _ in range(2 * CONNECTIONS_MAX):
        with running.connect() as client:
            client.sendall(b'{"do": "watch"}\n')
            assert client.recv(100) == b'{"names": []}\n'
    with running.connect() as client:
        client.sendall(b'{"do": "watch"}\n')
        assert client.recv(100)
        client.sendall(b"more")  # a second request is not allowed
        assert client.recv(100) == b""


def test_connections_above_the_limit_wait(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(running.connect()) for _ in range(WATCHERS_MAX)]
        for client in watchers:
            client.sendall(b'{"do": "watch"}\n')
            assert client.recv(100)
        assert "which is the limit" in str(running.ask(b'{"do": "watch"}\n')["error"])
        silent = [stack.enter_context(running.connect()) for _ in range(CONNECTIONS_MAX - WATCHERS_MAX)]
        with pytest.raises(MountError, match="has not answered"):
            read_status(running.path, 0.3)
        silent[0].close()
        assert read_status(running.path, SECONDS) == running.status
        watchers[0].close()
        assert read_status(running.path, SECONDS) == running.status


def test_announcing_does_not_block(running: Running) -> None:
    release = threading.Event()
    running.prefetch = lambda names: None  # type: ignore[method-assign]
    running.get_status = lambda: {"waited": release.wait(SECONDS)}  # type: ignore[method-assign]
    running.server.close()
    running.server = running.worker()
    with running.connect() as client:
        client.sendall(b'{"do": "status"}\n')
        began = time.monotonic()
        for _ in range(10_000):  # more than fit into the socket that wakes the thread
            running.server.announce(["x"])
        assert time.monotonic() - began < SECONDS / 2
        release.set()
        assert json.loads(client.recv(1000)) == {"waited": True}


# --- the path of the socket


def test_the_path_depends_on_the_absolute_target(tmp_path: Path) -> None:
    path = control_path(tmp_path, Path("/nix/store"))
    assert path.parent == tmp_path / "mounts"
    assert path == control_path(tmp_path, Path("/nix/x/../store/"))
    assert path != control_path(tmp_path, Path("/nix/store2"))
    assert control_path(tmp_path, Path("x")) == control_path(tmp_path, Path.cwd() / "x")
    with pytest.raises(MountError, match="NAR_RUN_DIR"):
        control_path(Path("/", "x" * 90), Path("/nix/store"))


def test_only_the_owner_has_access_to_the_directory(tmp_path: Path) -> None:
    make_run_dir(tmp_path / "new/run")
    make_run_dir(tmp_path / "new/run")
    assert stat.S_IMODE((tmp_path / "new/run/mounts").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="--run-dir or NAR_RUN_DIR"):
        make_run_dir(tmp_path / "file")


def test_a_directory_that_every_user_may_write_to_is_refused(running: Running) -> None:
    running.path.parent.chmod(0o777)
    with pytest.raises(MountError, match="chmod o-w"):
        read_status(running.path, SECONDS)
    with pytest.raises(MountError, match="chmod o-w"):
        make_run_dir(running.path.parents[1])


def test_a_directory_of_another_user_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # directories of root are accepted
        os.chown(running.path.parent, 65533, 65533)
    with pytest.raises(MountError, match="belongs to another user"):
        read_status(running.path, SECONDS)
    with pytest.raises(MountError, match="belongs to another user"):
        make_run_dir(running.path.parents[1])
