"""The dev server as a process: reloads, broken code, bodies in flight, and every way to end."""

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
    """The one server of this module, with the application it started with."""
    yield shared
    (checkout / "api" / "index.py").write_text(INDEX)
    wait_for(lambda: shared.get("/")[2] == "answer 0 /")


def test_no_request_is_refused_over_five_reloads(server: Running, checkout: Path) -> None:
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
    # A refused or reset connection would have ended its client with an exception, which pytest makes an error.
    assert {status for status, _ in answers} == {200}
    assert {body for _, body in answers} >= {f"answer {number} /" for number in range(1, 6)}


@pytest.mark.parametrize("file", ["api/index.py", "api/__init__.py", "narcore/errors.py", "narserve/dev/routing.py"])
def test_broken_code_is_a_page_until_it_is_mended(server: Running, checkout: Path, file: str) -> None:
    path = checkout / file
    sound = path.read_text()
    path.write_text(sound + '\nif "<script>":')
    wait_for(lambda: server.get("/x")[0] == 500)
    _, headers, body = server.get("/x")
    assert "SyntaxError" in body or "IndentationError" in body
    assert "&lt;script&gt;" in body
    assert "<script" not in body
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"] == "default-src 'none'"
    assert server.get("/x", "HEAD")[2] == ""

    path.write_text(sound)
    wait_for(lambda: server.get("/x")[0] == 200)


def test_a_body_in_flight_outlives_a_reload(server: Running, checkout: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/slow")
    response = connection.getresponse()
    (checkout / "api" / "index.py").write_text(INDEX.replace("answer 0", "answer 1"))
    wait_for(lambda: server.get("/")[2] == "answer 1 /")
    assert not response.isclosed()
    assert response.read() == b"." * 20
    connection.close()


@pytest.mark.parametrize("path", ["/broken/length", "/broken/chunked"])
def test_a_body_that_breaks_off_does_not_look_complete(server: Running, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()
    wait_for(
        lambda: any(line.startswith(f"GET {path} 200 100 B") and line.endswith("cut short") for line in server.lines())
    )


def test_one_line_a_request(server: Running) -> None:
    server.get("/a%20name?list", "HEAD")
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET /\x1b[31m\xff HTTP/1.1\r\nHost: x\r\n\r\n")
        while raw.recv(4096):
            pass
    # As it was asked for; and nothing that a terminal would obey.
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
def test_nothing_is_left_when_it_ends(checkout: Path, tmp_path: Path, number: signal.Signals) -> None:
    with running(checkout, tmp_path / "log", environment()) as server:
        assert server.get("/")[0] == 200
        children = server.children()
        server.process.send_signal(number)
        status = server.process.wait(10)
        assert status == (-9 if number == signal.SIGKILL else 0)
        wait_for(lambda: not any(map(is_alive, children)), seconds=5)
        # A child that was just being started when its parent died has the socket a moment longer.
        wait_for(lambda: is_refused(server.port), seconds=10)


def test_the_demo_is_next_to_the_default_store(checkout: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environ = environment(NAR_CACHE_URL="", TMPDIR=str(temporary))
    with running(checkout, tmp_path / "log", environ) as server:
        body = server.get("/")[2]
        (demo,) = temporary.iterdir()
        assert body.startswith(f"(('{demo.as_uri()}', 'https://cache.nixos.org'), [('")
        assert f"{demo.as_uri()}, https://cache.nixos.org" in server.log.read_text()
    assert list(temporary.iterdir()) == []


def test_a_store_that_is_given_replaces_the_demo_and_is_shown_without_its_password(
    checkout: Path, tmp_path: Path
) -> None:
    environ = environment(NAR_CACHE_URL="https://me:secret@cache.invalid/x?token=secret")
    with running(checkout, tmp_path / "log", environ) as server:
        assert server.get("/")[2] == "answer 0 /"
        assert "serves https://cache.invalid/x\n" in server.log.read_text()
        assert "secret" not in server.log.read_text()


def test_what_keeps_it_from_starting_is_one_line(checkout: Path, tmp_path: Path) -> None:
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
        assert f"port {port} is taken" in start(PORT=str(port))
    assert "PORT" in start(PORT="many")
    vercel_json = checkout / "vercel.json"
    sound = vercel_json.read_text()
    try:
        vercel_json.write_text(sound.replace('"rewrites"', '"redirects"'))
        assert "does not know 'redirects'" in start()
    finally:
        vercel_json.write_text(sound)


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
def test_a_bad_setting_that_only_the_application_sees_ends_the_start(tmp_path: Path, statement: str, line: str) -> None:
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
        wait_for(lambda: "ended with status -9" in server.log.read_text())
        # One that lived this short may be hopeless: it takes a change to try again, and then it answers.
        (checkout / "api" / "index.py").write_text(INDEX)
        assert server.get("/")[0] == 200
