"""The processes of ``nar-serve serve``: their start, their limits, and what they answer when all threads are busy."""

import os
import resource
import signal
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from narserve.server.openfiles import MOST, PER_CONNECTION, max_connections
from tests.builders import binary_cache, hash_part
from tests.server.conftest import HELLO_PATH, Start
from tests.server.rawhttp import RawClient
from tests.server.serving import Serving, eventually, fetch, serving

UNKNOWN = f"/nix/store/{'0' * 32}-unknown"


def children(server: Serving) -> list[int]:
    pid = server.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_ended(server: Serving, child: int) -> bool:
    return child not in children(server)


def test_a_worker_that_is_still_starting_obeys_sigterm(start: Start) -> None:
    with start() as server:
        for _ in range(3):
            before = server.workers()
            os.kill(before[0], signal.SIGKILL)
            while not (new := set(children(server)) - set(before)):
                pass  # without a pause, to meet the worker before it handles signals
            (starting,) = new
            os.kill(starting, signal.SIGTERM)
            eventually(partial(has_ended, server, starting))
        assert server.get("/healthz").status == 200


def test_workers_may_open_as_many_files_as_the_system_allows(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with start() as server:
            limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in server.workers()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limits == [(hard, hard)] * 2


def test_connections_fit_into_the_limit_of_open_files() -> None:
    for open_files in (1024, 4096, 65536):
        connections = max_connections(open_files, 32)
        assert 32 < connections <= open_files // PER_CONNECTION
    assert max_connections(resource.RLIM_INFINITY, 32) == max_connections(1 << 20, 32) == MOST
    assert max_connections(64, 32) == 32


def test_nar_max_connections_limits_the_connections_of_a_worker(start: Start) -> None:
    with start("--workers", "1", NAR_MAX_CONNECTIONS="5") as server, ExitStack() as clients:
        first, *others = [clients.enter_context(RawClient(server.port)) for _ in range(8)]
        assert others[-1].is_open()
        assert first.rest() == b""


def test_health_readiness_and_metrics_are_answered_while_all_threads_wait_for_a_store(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as clients:
        stores = "--store", f"http://127.0.0.1:{silent.getsockname()[1]}", "--workers", "1", "--threads", "2"
        with start(*stores, NAR_METRICS="on", NAR_STOP_SECONDS="1") as server:
            assert server.get("/readyz").status == 200
            for number in range(6):
                client = clients.enter_context(RawClient(server.port))
                client.send(f"GET {UNKNOWN}{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            eventually(lambda: "nar_serve_requests_in_progress 3.0" in server.get("/metrics").text)
            started = time.monotonic()
            for path in ("/healthz", "/readyz", "/metrics") * 3:
                assert server.get(path).status == 200
            assert time.monotonic() - started < 2


def test_health_checks_are_in_the_access_log_and_the_metrics(start: Start) -> None:
    with start("--workers", "1", NAR_METRICS="on") as server:
        assert server.get("/healthz").status == 200
        assert '"GET /healthz" 200 3 B' in eventually(server.access_log)[0]
        assert 'nar_serve_requests_total{kind="health",status="200"} 1.0' in server.get("/metrics").text


def test_files_of_a_store_path_with_its_own_host_may_be_named_like_a_health_check(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name, content in binary_cache({"site-1": {"healthz": b"a file\n", "metrics": b"a file\n"}}).items():
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_bytes(content)
    with serving(tmp_path / "server", str(store), settings={"DOMAIN": "nar.test", "NAR_METRICS": "on"}) as server:
        host = f"{hash_part('site-1')}.nar.test"
        for path in ("/healthz", "/metrics"):
            assert fetch(server.port, path, {"Host": host}).body == b"a file\n"
        assert fetch(server.port, "/healthz", {"Host": "nar.test"}).body == b"OK\n"


def test_a_cached_file_is_answered_in_the_versions_of_http(start: Start) -> None:
    with start("--workers", "1") as server:
        bodies = []
        for version in ("1.0", "1.1"):
            with RawClient(server.port) as client:
                client.send(f"GET {HELLO_PATH}/README HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                head, _, body = client.rest().partition(b"\r\n\r\n")
                assert head.startswith(f"HTTP/{version} 200 OK".encode())
                bodies.append(body)
        assert bodies[0] == bodies[1]
