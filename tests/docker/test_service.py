"""The socket of the plugin: its lifetime and permissions, and clients that are silent or send noise."""

import http.client
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from narcore.errors import MountError, SettingsError
from narmount.docker import service as service_module
from narmount.docker.service import Service, ask, sole_owner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def hello(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    body = json.dumps({"path": environ["PATH_INFO"]}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def running(path: Path, app: "WSGIApplication" = hello) -> Iterator[Service]:
    service = Service(path)
    service.start(app)
    try:
        yield service
    finally:
        service.close()


def post(path: Path, url: str) -> bytes:
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = connected(path)
    connection.request("POST", url, b"{}")
    answer = connection.getresponse().read()
    connection.close()
    return answer


def connected(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(20)
    found.connect(str(path))
    return found


def test_the_socket_answers_only_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "plugins" / "x.sock"
    with running(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(post(path, "/VolumeDriver.List")) == {"path": "/VolumeDriver.List"}
        assert json.loads(ask(path, 5)) == {"path": "/status"}
        assert os.listdir(path.parent) == ["x.sock"]
    assert os.listdir(path.parent) == []
    with pytest.raises(MountError, match="is nar-serve docker-volume running"):
        ask(path, 5)


def test_an_abandoned_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with running(path):
        assert post(path, "/x")


def test_a_file_that_is_not_a_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    path.write_text("precious")
    with pytest.raises(SettingsError, match="exists and is not a socket"):
        Service(path).start(hello)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is too long for a socket"):
        Service(tmp_path / ("x" * 100)).start(hello)


def test_a_state_directory_has_one_owner(tmp_path: Path) -> None:
    with (
        sole_owner(tmp_path / "state"),
        pytest.raises(SettingsError, match="another nar-serve docker-volume uses"),
        sole_owner(tmp_path / "state"),
    ):
        pass
    with sole_owner(tmp_path / "state"):
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_silent_client_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "SILENCE_SECONDS", 0.1)
    path = tmp_path / "x.sock"
    with running(path):
        for begin in (b"", b"POST /x HTTP/1.1\r\n"):
            with connected(path) as silent:
                silent.sendall(begin)
                assert silent.recv(1000) == b""
        assert post(path, "/x")


@pytest.mark.parametrize(
    "noise", [b"\x00\xff" * 100 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000 + b"\r\n\r\n"]
)
def test_noise_is_rejected_without_a_traceback(tmp_path: Path, noise: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.sock"
    with caplog.at_level(logging.WARNING), running(path):
        with connected(path) as connection:
            connection.sendall(noise)
            while connection.recv(1000):
                pass
        assert post(path, "/x")
    assert "Traceback" not in caplog.text


def test_concurrent_calls_are_limited_and_further_calls_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "CALLS_MAX", 2)
    lock, end = threading.Lock(), threading.Event()
    counts = {"now": 0, "most": 0}

    def slow(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
        assert end.wait(20)
        with lock:
            counts["now"] -= 1
        return hello(environ, start_response)

    answers: list[Any] = []
    path = tmp_path / "x.sock"
    with running(path, slow):
        threads = [threading.Thread(target=lambda: answers.append(post(path, "/x"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        threads[0].join(0.3)
        assert counts["now"] == 2
        end.set()
        for thread in threads:
            thread.join()
    assert (len(answers), counts["most"]) == (6, 2)


def test_the_service_stops_while_the_maximum_of_calls_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "CALLS_MAX", 1)
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(service_module, "STOP_SECONDS", 0.1)
    begun, end = threading.Event(), threading.Event()

    def hanging(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        begun.set()
        end.wait(20)
        return hello(environ, start_response)

    path = tmp_path / "x.sock"
    service = Service(path)
    service.start(hanging)
    with connected(path) as first, connected(path) as second:
        for connection in (first, second):
            connection.sendall(b"POST /x HTTP/1.0\r\n\r\n")
        assert begun.wait(20)
        closing = threading.Thread(target=service.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()
        with pytest.raises(ConnectionResetError):
            second.recv(1000)
        end.set()


def test_stopping_waits_for_calls_for_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        begun.set()
        assert end.wait(20)
        return hello(environ, start_response)

    answers: list[bytes] = []
    path = tmp_path / "x.sock"
    service = Service(path)
    service.start(slow)
    client = threading.Thread(target=lambda: answers.append(post(path, "/x")))
    client.start()
    assert begun.wait(20)
    timer = threading.Timer(0.2, end.set)
    timer.start()
    service.close()
    client.join()
    timer.join()
    assert answers

    begun.clear()
    end.clear()
    monkeypatch.setattr(service_module, "STOP_SECONDS", 0.1)
    service = Service(path)
    service.start(slow)
    client = threading.Thread(target=lambda: answers.append(post(path, "/x")))
    client.start()
    assert begun.wait(20)
    service.close()
    end.set()
    client.join()
