"""The development server as a process: reloads, broken code, responses in progress, and every way to stop."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dev.checkout import INDEX, Running, environment, is_alive, make_checkout, running, wait_for


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def shared(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(checkout, tmp_path_factory.mktemp("log") / "log", environment()) as server:
        yield server


@pytest.fixture
def server(shared: Running, checkout: Path) -> Iterator[Running]:
    """The shared server of this module. Restores the original application after the test."""
    yield shared
    (checkout / "api" / "index.py").write_text(INDEX)
    wait_for(lambda: shared.get("/")[2] == "answer 0 /")


def test_no_request_is_refused_during_five_reloads(server: Running, checkout: Path) -> None:
    answers: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            status, _, body = server.get("/")
            answers.append((status, body))

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        for number in range(1, 6):
            (checkout / "api" / "index.py").write_text(INDEX.replace("answer 0", f"answer {number}"))
            wait_for(lambda body=f"answer {number} /": answers[-1:] == [(200, body)])  # type: ignore[misc]
    finally:
        done.set()
        for client in clients:
            client.join()
    # A refused or reset connection would end the client thread with an exception, which pytest reports as an error.
    assert {status for status, _ in answers} == {200}
    assert {body for _, body in answers} >= {f"answer {number} /" for number in range(1, 6)}


@pytest.mark.parametrize("file", ["api/index.py", "api/__init__.py", "narcore/errors.py", "narserve/dev/routing.py"])
def test_broken_code_shows_an_error_page_until_it_is_fixed(server: Running, checkout: Path, file: str) -> None:
    path = checkout / file
    original = path.read_text()
    path.write_text(original + '\nif "<script>":')
    wait_for(lambda: server.get("/x")[0] == 500)
    _, headers, body = server.get("/x")
    assert "SyntaxError" in body or "IndentationError" in body
    assert "&lt;script&gt;" in body
    assert "<script" not in body
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"] == "default-src 'none'"
    assert server.get("/x", "HEAD")[2] == ""

    path.write_text(original)
    wait_for(lambda: server.get("/x")[0] == 200)


def test_a_response_in_progress_completes_after_a_reload(server: Running, checkout: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/slow")
    response = connection.getresponse()
    (checkout / "api" / "index.py").write_text(INDEX.replace("answer 0", "answer 1"))
    wait_for(lambda: server.get("/")[2] == "answer 1 /")
    assert not response.isclosed()
    assert response.read() == b"." * 20
    connection.close()


@pytest.mark.parametrize("path", ["/broken/length", "/broken/chunked"])
def test_a_truncated_body_does_not_look_complete(server: Running, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()
    wait_for(
        lambda: any(line.startswith(f"GET {path} 200 100 B") and line.endswith("cut short") for line in server.lines())
    )


def raw(server: Running, request: bytes) -> tuple[bytes, bytes]:
    """Return the head and the body of the response to a raw request."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
        return head, body


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_path_reaches_the_application_as_bytes(server: Running, version: bytes) -> None:
    head, body = raw(server, b"GET /caf%FF/%C3%A9 HTTP/" + version + b"\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/" + version + b" 200 ")
    assert body == b"answer 0 /caf\xff/\xc3\xa9"


def test_a_client_of_http_1_0_gets_no_chunks(server: Running) -> None:
    head, body = raw(server, b"GET /broken/chunked HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"x" * 100


def test_each_request_logs_one_line(server: Running) -> None:
    server.get("/a%20name?list", "HEAD")
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET /\x1b[31m\xff HTTP/1.1\r\nHost: x\r\n\r\n")
        while raw.recv(4096):
            pass
    # The path is logged as requested, with escaped control characters.
    wait_for(lambda: [line for line in server.lines() if line.startswith("HEAD /a%20name?list 200 0 B ")])
    wait_for(lambda: [line for line in server.lines() if line.startswith("GET /\\x1b[31m")])
    assert "\x1b" not in server.log.read_text()


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_remains_when_it_ends(checkout: Path, tmp_path: Path, number: signal.Signals) -> None:
    with running(checkout, tmp_path / "log", environment()) as server:
        assert server.get("/")[0] == 200
        children = server.children()
        server.process.send_signal(number)
        status = server.process.wait(10)
        assert status == (-9 if number == signal.SIGKILL else 0)
        wait_for(lambda: not any(map(is_alive, children)), seconds=5)
        # A child that was starting when its parent died keeps the socket open a little longer.
        wait_for(lambda: is_refused(server.port), seconds=10)


def test_the_demo_is_served_together_with_the_default_store(checkout: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environ = environment(NAR_CACHE_URL="", TMPDIR=str(temporary))
    with running(checkout, tmp_path / "log", environ) as server:
        body = server.get("/")[2]
        (demo,) = temporary.iterdir()
        assert body.startswith(f"(('{demo.as_uri()}', 'https://cache.nixos.org'), [('")
        assert f"{demo.as_uri()}, https://cache.nixos.org" in server.log.read_text()
    assert list(temporary.iterdir()) == []


def test_a_configured_store_replaces_the_demo_and_is_printed_without_its_password(
    checkout: Path, tmp_path: Path
) -> None:
    environ = environment(NAR_CACHE_URL="https://me:secret@cache.invalid/x?token=secret")
    with running(checkout, tmp_path / "log", environ) as server:
        assert server.get("/")[2] == "answer 0 /"
        assert "serves https://cache.invalid/x\n" in server.log.read_text()
        assert "secret" not in server.log.read_text()


def test_an_error_at_the_start_is_one_line(checkout: Path, tmp_path: Path) -> None:
    def start(**extra: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "narserve.dev.supervisor"],
            cwd=checkout,
            env=environment(**extra),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        return ended.stderr

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} is already in use" in start(PORT=str(port))
        assert start(PORT=str(port)).endswith(f": PORT={port + 1}\n")
        assert start(HTTP_ADDR=f"127.0.0.1:{port}").endswith(f": HTTP_ADDR=127.0.0.1:{port + 1}\n")
    assert "PORT" in start(PORT="many")
    vercel_json = checkout / "vercel.json"
    original = vercel_json.read_text()
    try:
        vercel_json.write_text(original.replace('"rewrites"', '"redirects"'))
        assert "does not support 'redirects'" in start()
    finally:
        vercel_json.write_text(original)


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        (
            "from narcore.errors import SettingsError; raise SettingsError('no such scheme')",
            "start-dev: no such scheme\n",
        ),
        ("raise SystemExit('nar-serve: no such scheme')", "nar-serve: no such scheme\n"),
    ],
)
def test_an_invalid_setting_that_only_the_application_detects_is_one_line(
    tmp_path: Path, statement: str, line: str
) -> None:
    root = make_checkout(tmp_path / "checkout")
    (root / "api" / "index.py").write_text(f"{statement}\napp = 1\n")
    ended = subprocess.run(
        [sys.executable, "-m", "narserve.dev.supervisor"],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (2, line)


def test_a_server_process_that_dies_is_replaced(checkout: Path, tmp_path: Path) -> None:
    with running(checkout, tmp_path / "log", environment()) as server:
        server.get("/")
        (child,) = server.children()
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: "exited with status -9" in server.log.read_text())
        # A child that ran for so short a time only restarts on a change.
        (checkout / "api" / "index.py").write_text(INDEX)
        assert server.get("/")[0] == 200
