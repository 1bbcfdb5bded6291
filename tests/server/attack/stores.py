"""An unresponsive store must not slow down cached files; requests to a slow store must succeed, and share downloads."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.report import Row, at_most
from tests.builders import binary_cache, store_path
from tests.e2e.upstream import Upstream
from tests.server.attack.attackers import Plan, attacking
from tests.server.attack.probing import Probe, probe, probe_again
from tests.server.attack.site import HEALTHZ, HEALTHZ_BODY, Site, usual_descriptor_limit, write_cache
from tests.server.attack.slowclients import Form
from tests.server.serving import Serving, serving

CLIENTS = 70  # more than the 64 threads of the server
LIMIT_MS = 100.0
SLOW_SECONDS = 2.0  # a shorter wait for a store does not count: the store may only be slow
HONEST = 64
ANSWER_SECONDS = 1.0  # of the slow store
HONEST_TIMEOUT = 120.0
MERGED = 100  # clients that request one path; more than the threads of the server
COLD_SIZE = 10_000
SETTINGS = {"NAR_WORKERS": "2", "NAR_THREADS": "32", "NAR_STOP_SECONDS": "2"}


def unresponsive_store(site: Site, seconds: float, *, windows: int = 1) -> Iterator[Row]:
    """70 clients ask for 70 paths of a store that accepts connections and never answers. Cached files keep their speed.

    ``windows`` is as for `tests.server.attack.slowclients.attack`.
    """
    names = [f"cold-{number}" for number in range(CLIENTS)]
    with _store(site, "unresponsive", [*names, "warm"]) as (upstream, server):
        asked = [Probe(HEALTHZ, HEALTHZ_BODY), Probe(_path("warm"), _data("warm"))]
        for answers in probe(server.port, asked, 1):
            assert not answers.failures, answers
        before = probe(server.port, asked, min(seconds, 3))
        plan = Plan(tuple(Form().head("GET", _path(name)) for name in names), CLIENTS)
        with upstream.fault("*", delay=windows * seconds + 10), attacking(plan, server.port) as attack:
            first = probe(server.port, asked, SLOW_SECONDS)
            during = probe_again(server.port, asked, seconds, LIMIT_MS, windows)
            seen = attack.stop()
    for what, idle, busy, early in zip(("/healthz", "cached file"), before, during, first, strict=True):
        yield Row(f"unresponsive store: {what}, in the first {SLOW_SECONDS:g} s", str(early))
        yield Row(
            f"unresponsive store: {what}",
            str(busy),
            f"p99 {idle.percentile(0.99) * 1000:.0f} ms without clients",
            goal=f"p99 <= {LIMIT_MS:g} ms",
            met=busy.are_within(LIMIT_MS),
        )
    yield Row(f"unresponsive store: responses to the {CLIENTS} clients", str(seen.statuses or "none yet"))


def slow_store(site: Site, seconds: float, *, honest: int = HONEST) -> Iterator[Row]:
    """64 clients ask for 64 paths of a single store that answers each request after 1 s. All must get their file."""
    del seconds  # the proof ends when the last client has its answer
    names = [f"cold-{number}" for number in range(honest)]
    with _store(site, "slow", names) as (upstream, server), upstream.fault("*", delay=ANSWER_SECONDS):
        times, failures = asyncio.run(_fetch_all(server.port, names))
    failed = ", ".join(f"{count} x {kind}" for kind, count in failures.items())
    yield Row(
        f"slow store: of {honest} cold requests, successful",
        f"{len(times)}{f'; {failed}' if failed else ''}",
        goal=str(honest),
        met=len(times) == honest,
    )
    yield at_most("slow store: slowest successful request", max(times, default=0.0), "s")


def merging(site: Site, seconds: float) -> Iterator[Row]:
    """100 clients ask for one file that is not cached. The server requests its NAR once."""
    del seconds  # the proof ends when the last client has its answer
    with _store(site, "merging", ["cold"]) as (upstream, server), upstream.fault("*", delay=ANSWER_SECONDS):
        times, _ = asyncio.run(_fetch_all(server.port, ["cold"] * MERGED))
        requests = upstream.count("*.nar.*")
    yield Row(
        f"merging: of {MERGED} requests for one path, successful",
        f"{len(times)}",
        goal=f"{MERGED}",
        met=len(times) == MERGED,
    )
    yield Row("merging: requests to the store for the NAR", f"{requests}", goal="1", met=requests == 1)


@contextmanager
def _store(site: Site, name: str, names: list[str]) -> Iterator[tuple[Upstream, Serving]]:
    """Run a binary cache with a small store path for each of ``names``, and a server with an empty disk cache."""
    directory = site.directory / name
    write_cache(directory / "store", binary_cache({each: {"file": _data(each)} for each in names}))
    with Upstream() as upstream, usual_descriptor_limit():
        url = upstream.mount("store", directory / "store")
        with serving(directory, url, settings=SETTINGS) as server:
            server.workers()
            yield upstream, server


def _path(name: str) -> str:
    return f"{store_path(name)}/file"


def _data(name: str) -> bytes:
    return name.encode().ljust(COLD_SIZE, b".")


async def _fetch_all(port: int, names: list[str]) -> tuple[list[float], Counter[str]]:
    """Request the file of each store path at the same time; returns the seconds of the successful requests, and the failures."""
    failures: Counter[str] = Counter()
    found = await asyncio.gather(*(_fetch(port, name, failures) for name in names))
    return [each for each in found if each is not None], failures


async def _fetch(port: int, name: str, failures: Counter[str]) -> float | None:
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(HONEST_TIMEOUT):
            writer.write(Form().head("GET", _path(name), "Connection: close").encode())
            response = await reader.read(-1)
    except (TimeoutError, OSError) as error:
        failures[type(error).__name__] += 1
        return None
    finally:
        writer.close()
    head, _, body = response.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200 ") and body == _data(name):
        return time.monotonic() - started
    failures[head.partition(b"\r\n")[0].decode("latin-1") or "no response"] += 1
    return None
