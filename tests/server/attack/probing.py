"""Requests at a steady rate, and their response times: what an honest client notices of an attack."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

INTERVAL = 0.02  # seconds between two requests for one URL; a slow response does not delay the next request
TIMEOUT = 2.0  # seconds; a request that takes longer counts as one that took this long


@dataclass(frozen=True, slots=True)
class Probe:
    """A URL path and its correct body. ``version`` is that of HTTP."""

    path: str
    body: bytes
    version: str = "1.1"

    def request(self) -> bytes:
        """Return the bytes to send."""
        return f"GET {self.path} HTTP/{self.version}\r\nHost: probe\r\nConnection: close\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Answers:
    """The response times of one probe in seconds, sorted. A request without the correct response has the time TIMEOUT."""

    seconds: tuple[float, ...]
    failures: Mapping[str, int]

    def percentile(self, share: float) -> float:
        """Return the time within which this share of the requests was answered."""
        return self.seconds[max(0, math.ceil(len(self.seconds) * share) - 1)]

    def are_within(self, milliseconds: float) -> bool:
        """Return whether 99 of 100 requests were answered within this time."""
        return self.percentile(0.99) * 1000 <= milliseconds

    def __str__(self) -> str:
        p50, p99, worst = (f"{self.percentile(share) * 1000:.0f} ms" for share in (0.5, 0.99, 1.0))
        failed = "".join(f"; {count} x {kind}" for kind, count in self.failures.items())
        return f"p50 {p50}, p99 {p99}, worst {worst} of {len(self.seconds)}{failed}"


def probe(port: int, probes: list[Probe], seconds: float) -> list[Answers]:
    """Send requests for ``seconds``, each on a new connection; returns the answers in the order of ``probes``."""
    return asyncio.run(_probe_all(port, probes, seconds))


def probe_again(port: int, probes: list[Probe], seconds: float, milliseconds: float, windows: int) -> list[Answers]:
    """Call `probe` until all answers are within this time, at most ``windows`` times; returns the last result."""
    found = probe(port, probes, seconds)
    for _ in range(windows - 1):
        if all(each.are_within(milliseconds) for each in found):
            break
        found = probe(port, probes, seconds)
    return found


async def _probe_all(port: int, probes: list[Probe], seconds: float) -> list[Answers]:
    return list(await asyncio.gather(*(_probe(port, each, seconds) for each in probes)))


async def _probe(port: int, what: Probe, seconds: float) -> Answers:
    failures: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:
        tasks, started = [], time.monotonic()
        for number in range(max(1, round(seconds / INTERVAL))):
            await asyncio.sleep(started + number * INTERVAL - time.monotonic())
            tasks.append(group.create_task(_ask(port, what, failures)))
    return Answers(tuple(sorted(task.result() for task in tasks)), failures)


async def _ask(port: int, what: Probe, failures: Counter[str]) -> float:
    """Return the seconds until the response is complete."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT):
            await _exchange(port, what)
    except TimeoutError:
        failures["no response"] += 1
    except (OSError, asyncio.IncompleteReadError) as error:
        failures[type(error).__name__] += 1
    except _Wrong as error:
        failures[str(error)] += 1
    else:
        return time.monotonic() - started
    return TIMEOUT


class _Wrong(Exception):
    """A response with another status or body than expected."""


async def _exchange(port: int, what: Probe) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(what.request())
        await _read_response(reader, what.body)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _read_response(reader: asyncio.StreamReader, body: bytes) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = head.split(" ", 2)[1]
    if status != "200":
        raise _Wrong(f"status {status}")
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    if await reader.readexactly(length) != body:
        raise _Wrong("wrong body")
