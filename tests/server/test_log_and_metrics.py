"""The access log, and the metrics of two workers."""

import json
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api.factory import create_app
from narcore.errors import SettingsError
from narcore.settings import Settings
from tests.server.conftest import BIG_DATA, BIG_FILE, HELLO_PATH, README, Start
from tests.server.serving import Reply, Serving, eventually


@contextmanager
def beginning(server: Serving, path: str) -> Iterator[None]:
    """Begin a response without reading it. At the end of the ``with`` block, the client disconnects."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        yield


Entry = dict[str, Any]


def next_entry(server: Serving, before: int) -> Entry:
    """Wait for the log entry after ``before`` other lines. The server may write it a little after the client got the response."""
    lines = eventually(lambda: server.access_log()[before:])
    entry: Entry = json.loads(lines[0])
    return entry


def ask(server: Serving, path: str, headers: Mapping[str, str] | None = None) -> tuple[Reply, Entry]:
    """Send a request. Returns the response and its log entry."""
    before = len(server.access_log())
    return server.get(path, headers), next_entry(server, before)


def test_the_json_access_log_describes_each_request(start: Start) -> None:
    with start("--workers", "1", NAR_LOG_FORMAT="json") as server:
        reply, entry = ask(server, f"{HELLO_PATH}/README", {"X-Request-Id": "my-id"})
        assert reply.headers["X-Request-Id"] == entry["request_id"] == "my-id"
        assert 0 < entry.pop("first_byte_ms") <= entry.pop("ms") + 0.1
        assert entry.pop("time")
        assert entry == {
            "level": "info", "logger": "api.access", "message": "request", "request_id": "my-id",
            "client": "127.0.0.1", "method": "GET", "path": f"{HELLO_PATH}/README", "status": 200, "kind": "file",
            "bytes": len(README), "complete": True, "sources": ["fill"], "error": "",
        }  # fmt: skip
        reply, entry = ask(server, f"{HELLO_PATH}/bin/", {"X-Request-Id": "no good"})
        assert re.fullmatch("[0-9a-f]{32}", entry["request_id"])
        assert reply.headers["X-Request-Id"] == entry["request_id"]
        assert (entry["kind"], entry["bytes"], entry["sources"]) == ("directory", len(reply.body), [])
        strange = f"{HELLO_PATH}/a%20b%0a%ff%22?x=%22"
        reply, entry = ask(server, strange)
        assert (entry["path"], entry["status"], entry["kind"]) == (strange, 404, "error")
        assert ask(server, BIG_FILE)[1]["sources"] == ["fill"]
        entry = eventually(lambda: from_disk(server))
        assert (entry["bytes"], entry["complete"]) == (len(BIG_DATA), True)  # by sendfile
        before = len(server.access_log())
        with beginning(server, BIG_FILE):
            pass
        entry = next_entry(server, before)
        assert (entry["status"], entry["sources"], entry["complete"]) == (200, ["disk"], False)
        assert 0 <= entry["bytes"] < len(BIG_DATA)
        errors = [json.loads(line) for line in server.err.read_text().splitlines()]
        assert {each["level"] for each in errors} <= {"info", "warning"}


def from_disk(server: Serving) -> Entry:
    """Request the large file again. Returns the log entry, or an empty one if the file was not read from the disk cache."""
    entry = ask(server, BIG_FILE)[1]
    return entry if entry["sources"] == ["disk"] else {}


def test_an_error_is_logged_with_the_id_of_its_request(start: Start, tmp_path: Path) -> None:
    path = f"/nix/store/{'0' * 32}-bad/x"
    (tmp_path / f"{'0' * 32}.narinfo").write_text("nonsense")
    with start("--workers", "1", "--store", str(tmp_path), NAR_LOG_FORMAT="json") as server:
        assert server.get(path, {"X-Request-Id": "id-9"}).status == 502
        errors = [json.loads(line) for line in server.err.read_text().splitlines()]
        assert [each["request_id"] for each in errors if path in each["message"]] == ["id-9"]


SAMPLE = re.compile(r"nar_serve_(\w+?)(?:_total)?(?:\{(.*)\})? (\S+)")


def samples(server: Serving) -> dict[tuple[str, ...], float]:
    """Return all samples of /metrics, by name and label values in the order of the label names."""
    found = {}
    for line in server.get("/metrics").text.splitlines():
        match = SAMPLE.fullmatch(line)
        if match and "_bucket" not in line:
            values = re.findall(r'="((?:[^"\\]|\\.)*)"', match[2] or "")
            found[match[1], *values] = float(match[3])
    return found


def test_metrics_add_up_two_workers(start: Start) -> None:
    with start("--workers", "2", "--threads", "1", NAR_METRICS="on") as server:
        script = Counter(
            {
                f"{HELLO_PATH}/README": 20,
                BIG_FILE: 1,
                f"{HELLO_PATH}/": 10,
                f"{HELLO_PATH}/?format=tar": 2,
                f"{HELLO_PATH}/lib": 5,
                f"{HELLO_PATH}/none": 5,
                "/healthz": 5,
                "/": 3,
            }
        )
        sizes: Counter[str] = Counter()
        for path in script.elements():
            sizes[path] += len(server.get(path).body)
        with beginning(server, BIG_FILE), beginning(server, BIG_FILE):
            pass  # each worker serves one of them, since a worker with one thread accepts one connection
        got = eventually(lambda: _settled(server, sum(script.values()) + 2))
        of = {"file": f"{HELLO_PATH}/README", "directory": f"{HELLO_PATH}/", "archive": f"{HELLO_PATH}/?format=tar",
              "redirect": f"{HELLO_PATH}/lib", "error": f"{HELLO_PATH}/none", "health": "/healthz", "page": "/"}  # fmt: skip
        status = {"redirect": "302", "error": "404"}
        for kind, path in of.items():
            count = script[path] + (3 if kind == "file" else 0)  # the large file, once complete and twice cut
            assert got["requests", kind, status.get(kind, "200")] == count
            assert got["request_seconds_count", kind] == got["first_byte_seconds_count", kind] == count
            assert got["request_seconds_sum", kind] > got["first_byte_seconds_sum", kind] > 0
            if kind != "file":
                assert got["sent_bytes", kind] == sizes[path]
        whole = sizes[of["file"]] + len(BIG_DATA)
        assert whole < got["sent_bytes", "file"] < whole + 2 * len(BIG_DATA)
        assert _of(got, "responses_cut") == {("file",): 2}
        assert got["requests_in_progress",] == 1  # the request for /metrics itself
        _check_cache_and_stores(got)


def _settled(server: Serving, count: int) -> dict[tuple[str, ...], float]:
    """Return the samples if all requests of the script and both fills have ended, else none.

    The samples of another worker are not read in one moment, so they are read again after the end.
    """
    got = samples(server)
    ended = sum(value for key, value in got.items() if key[0] == "requests" and key[1] != "metrics")
    return samples(server) if ended == count and _of(got, "cache_events")["fill",] >= 2 else {}


def _of(got: Mapping[tuple[str, ...], float], name: str) -> dict[tuple[str, ...], float]:
    return {key[1:]: value for key, value in got.items() if key[0] == name}


def _check_cache_and_stores(got: Mapping[tuple[str, ...], float]) -> None:
    """Checks that both NARs were fetched once, by one worker, and that both workers read them."""
    events = _of(got, "cache_events")
    assert events["failure",] == events["evict",] == 0
    assert events["hit",] + events["miss",] + events["join",] >= 20
    reads = _of(got, "nar_reads")
    assert reads["disk",] + reads["fill",] >= 22
    assert reads["range",] == reads["stream",] == 0
    fetched: Counter[str] = Counter()
    for (outcome, _store, what), value in _of(got, "upstream_requests").items():
        assert outcome in ("whole", "left")
        fetched[what] += int(value)
    assert fetched["nar"] == 2
    assert 2 <= fetched["narinfo"] <= 4
    assert _of(got, "upstream_errors") == {}
    (received,) = [value for (_store, what), value in _of(got, "received_bytes").items() if what == "nar"]
    assert received > len(BIG_DATA)
    assert got["upstream_seconds_count", "nar"] == 2


def test_a_missing_metrics_library_is_reported_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "api.telemetry.metrics", raising=False)
    settings = Settings.from_environ({"NAR_METRICS": "1", "NAR_CACHE_DIR": "off"})
    with pytest.raises(SettingsError, match=r"pip install '\.\[metrics\]'"):
        create_app(settings)


def test_metrics_are_served_only_if_they_are_on(cache_directory: Path) -> None:
    def status(**settings: str) -> tuple[int, str]:
        given = {"NAR_CACHE_DIR": "off", "NAR_CACHE_URL": str(cache_directory)}
        app = create_app(Settings.from_environ(given | settings))
        reply = app.test_client().get("/metrics")
        return reply.status_code, reply.text

    assert status()[0] == 404
    assert status(NAR_METRICS="off")[0] == 404
    code, text = status(NAR_METRICS="on")
    assert code == 200
    assert "nar_serve_requests_in_progress 1.0" in text
