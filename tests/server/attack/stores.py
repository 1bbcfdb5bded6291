"""An unresponsive store must not slow down cached files; requests to a slow store must succeed, and share downloads."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.report import Row
from tests.builders import binary_cache, store_path
from tests.e2e.upstream import Upstream
from tests.server.attack.site import HEALTHZ, Site, usual_descriptor_limit, write_cache
from tests.server.attack.slowclients import Form
from tests.server.serving import Serving, serving
from tests.server.unresponsive import CLIENTS, SILENCES, cold_requests, measure

LIMIT_MS = 100.0
HONEST = 64
ANSWER_SECONDS = 1.0  # of the slow store
HONEST_TIMEOUT = 120.0
MERGED = 100  # clients that request one path; more than the threads of the server
COLD_SIZE = 10_000
SETTINGS = {"NAR_WORKERS": "2", "NAR_THREADS": "32", "NAR_STOP_SECONDS": "2"}


def unresponsive_store(site: Site, seconds: float) -> Iterator[Row]:
    """70 clients ask for 70 paths of a store that does not answer, for each kind of silence. Cached files keep their speed."""
    for number, silence in enumerate(SILENCES):
        result = measure(site.directory / f"silence-{number}", silence, seconds)
        for path in result.seconds:
            p99 = result.percentile(path)
            yield Row(
                f"unresponsive store, {silence}: {'/healthz' if path == HEALTHZ else 'cached file'}",
                f"p50 {result.percentile(path, 0.5) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms of {len(result.seconds[path])}",
                goal=f"p99 <= {LIMIT_MS:g} ms",
                met=p99 * 1000 <= LIMIT_MS,
            )
        yield Row(f"unresponsive store, {silence}: responses to the {CLIENTS} clients", str(dict(result.statuses)))


def slow_store(site: Site, seconds: float) -> Iterator[Row]:
    """64 clients ask for 64 paths of a single store that answers each request after 1 s. All must get their file."""
    del seconds  # the proof ends when the last client has its answer
    statuses = cold_requests(site.directory / "slow", HONEST, delay=ANSWER_SECONDS)
    yield Row(
        f"slow store: statuses of {HONEST} cold requests",
        str(dict(statuses)),
        goal=f"{HONEST} x 200",
        met=statuses == {200: HONEST},
    )


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
