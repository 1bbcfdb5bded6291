"""The clients, each in a process of its own, so that they take no time from a server's interpreter.

``python -m tests.bench.client MODE PORT SECONDS CONNECTIONS PATH...`` prints a JSON object. Modes: ``get`` all paths at once,
each on its own connection; ``rate`` asks for the one path again and again; ``slow`` reads the one path at MODEST_RATE.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

BUFFER = 1 << 20
MODEST_RATE = 1_000_000  # bytes a second


class Connection:
    """One connection that is kept alive. It knows no chunked bodies: none of what is asked for here has one."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self._buffer = bytearray(BUFFER)

    def close(self) -> None:
        self._socket.close()

    def get(self, path: str, pace: Callable[[int], object] = lambda received: None) -> int:
        """Read an answer to its end; the length of its body. ``pace`` is told how much of the body there is so far."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        left, length = self._head()
        while left > 0:
            got = self._socket.recv_into(self._buffer, min(left, BUFFER))
            if not got:
                raise ConnectionError(f"{path}: cut {left} bytes before the end")
            left -= got
            pace(length - left)
        return length

    def _head(self) -> tuple[int, int]:
        """What is left to be read of the body, and its length."""
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
    return _together([partial(_once, port, path) for path in paths])


def _once(port: int, path: str) -> int:
    connection = Connection(port)
    try:
        return connection.get(path)
    finally:
        connection.close()


def rate(port: int, seconds: float, connections: int, paths: list[str]) -> dict[str, float]:
    def work() -> int:
        connection, count, end = Connection(port), 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.get(paths[0])
            count += 1
        connection.close()
        return count

    return _together([work] * connections)


def slow(port: int, seconds: float, connections: int, paths: list[str]) -> dict[str, float]:
    class Enough(Exception):
        """The time is over."""

    def work() -> int:
        connection, started, total = Connection(port), time.perf_counter(), 0

        def pace(received: int) -> None:
            nonlocal total
            total = received
            now = time.perf_counter() - started
            if now > seconds:
                raise Enough
            time.sleep(max(0.0, received / MODEST_RATE - now))

        try:
            connection.get(paths[0], pace)
        except Enough:
            pass
        finally:
            connection.close()
        return total

    return _together([work] * connections)


def _together(jobs: list[Callable[[], int]]) -> dict[str, float]:
    """Seconds until all jobs are done, and the sum of what they give."""
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
