"""The HTTP client of the benchmarks, which runs in a separate process, so that it does not slow down the server.

``python -m tests.bench.client MODE PORT SECONDS CONNECTIONS PATH...`` prints a JSON object. Modes: ``get`` requests all paths
concurrently, each on its own connection; ``rate`` requests one path repeatedly; ``slow`` reads one path at SLOW_RATE.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

BUFFER = 1 << 20
SLOW_RATE = 1_000_000  # bytes per second


class Connection:
    """A keep-alive connection. It does not support chunked bodies, because the benchmarks request none."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self._buffer = bytearray(BUFFER)

    def close(self) -> None:
        self._socket.close()

    def get(self, path: str, on_progress: Callable[[int], object] = lambda received: None) -> int:
        """Read a complete response and return the length of its body.

        ``on_progress`` is called with the number of bytes received up to now, after each read. Raises ConnectionError if the
        response is cut.
        """
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        left, length = self._head()
        while left > 0:
            got = self._socket.recv_into(self._buffer, min(left, BUFFER))
            if not got:
                raise ConnectionError(f"{path}: cut {left} bytes before the end")
            left -= got
            on_progress(length - left)
        return length

    def _head(self) -> tuple[int, int]:
        """Read the head; returns how many bytes of the body are left to read, and the length of the body."""
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._socket.recv(BUFFER)
            if not data:
                raise ConnectionError("cut before the head")
            head += data
        head, _, body = head.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        assert " 200 " in lines[0], lines[0]
        length = int(next(line for line in lines if line.startswith("content-length:")).partition(":")[2])
        return length - len(body), length


def get(port: int, _seconds: float, _connections: int, paths: list[str]) -> dict[str, float]:
    return _run_concurrently([partial(_get_once, port, path) for path in paths])


def _get_once(port: int, path: str) -> int:
    connection = Connection(port)
    try:
        return connection.get(path)
    finally:
        connection.close()


def rate(port: int, seconds: float, connections: int, paths: list[str]) -> dict[str, float]:
    def count_requests() -> int:
        connection, count, end = Connection(port), 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.get(paths[0])
            count += 1
        connection.close()
        return count

    return _run_concurrently([count_requests] * connections)


def slow(port: int, seconds: float, connections: int, paths: list[str]) -> dict[str, float]:
    class TimeIsUp(Exception):
        """``seconds`` have passed."""

    def count_bytes() -> int:
        connection, started, total = Connection(port), time.perf_counter(), 0

        def on_progress(received: int) -> None:
            nonlocal total
            total = received
            now = time.perf_counter() - started
            if now > seconds:
                raise TimeIsUp
            time.sleep(max(0.0, received / SLOW_RATE - now))

        try:
            connection.get(paths[0], on_progress)
        except TimeIsUp:
            pass
        finally:
            connection.close()
        return total

    return _run_concurrently([count_bytes] * connections)


def _run_concurrently(jobs: list[Callable[[], int]]) -> dict[str, float]:
    """Run all jobs concurrently; returns the seconds until the last one ends, and the sum of their results."""
    results: list[int] = []

    def run(job: Callable[[], int]) -> None:
        results.append(job())

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(jobs), "a client failed"
    return {"seconds": time.perf_counter() - started, "sum": sum(results)}


if __name__ == "__main__":
    mode, port, seconds, connections, *paths = sys.argv[1:]
    print(
        json.dumps({"get": get, "rate": rate, "slow": slow}[mode](int(port), float(seconds), int(connections), paths))
    )
