"""10,000 slow readers of one cached file of 50 MB: memory, and the speed of an ordinary download beside them."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.report import MB, Row, at_most
from tests.server.attack.attackers import Plan, attacking
from tests.server.attack.probing import probe
from tests.server.attack.site import LARGE_FILE, LARGE_SIZE, Site, probes, rss
from tests.server.attack.slowclients import SMALL_BUFFER, Form

READERS = 10_000
RATE = 1000  # bytes per second of one reader
SPREAD = 97  # the readers begin at this number of places in the file, so that they need different pages
SHARE = 0.5  # of its speed alone, which a download must reach beside the readers
DROP_SECONDS = 1.0
STANDING_SECONDS = 60.0
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte


def crowd(
    site: Site, seconds: float, *, readers: int = READERS, cached_pages: bool = True, share: float = SHARE
) -> Iterator[Row]:
    """Yield rows about ``readers`` slow readers. A download beside them must reach ``share`` of its speed alone.

    Without ``cached_pages``, the pages of the file are removed from the page cache before each download, and each second while the
    readers read.
    """
    title = f"{readers:,} slow readers{'' if cached_pages else ', file not in the page cache'}"
    pages = site.cached_file()
    with site.server(NAR_CACHE_SIZE="2G") as server:
        drop = None if cached_pages else pages
        alone = _speed(server.port, drop, seconds / 2)
        before = rss(server)
        if drop:
            yield at_most(
                f"{title}: pages of the file in the page cache after removal", _pages_after_drop(drop), "%", 10
            )
        with attacking(_plan(readers), server.port, STANDING_SECONDS) as attack, _dropping(drop):
            standing = attack.standing
            yield Row(
                f"{title}: readers with a response",
                f"{standing.answered:,} after {standing.standing_seconds:.1f} s",
                goal=f"{readers:,}",
                met=standing.statuses == {"206": readers},
            )
            beside = _speed(server.port, drop, seconds)
            answers = probe(server.port, probes(), min(seconds, 5))
            after = rss(server)
            yield Row(f"{title}: descriptors of the workers", f"{sum(map(_descriptors, server.workers())):,}")
            yield Row(f"{title}: memory of the kernel for TCP", f"{_tcp_memory() / MB:,.0f} MB")
            seen = attack.stop()
    yield Row(f"{title}: RSS of all processes", f"{after / MB:,.0f} MB", f"{before / MB:,.0f} MB before")
    yield Row(f"{title}: RSS for one reader", f"{(after - before) / readers / 1000:,.1f} KB")
    yield at_most(f"{title}: readers that were cut", seen.ended + seen.reset, "", 0)
    yield Row(
        f"{title}: an ordinary download beside them",
        f"{beside / MB:,.0f} MB/s",
        f"{alone / MB:,.0f} MB/s alone",
        beside / alone,
        f">= {share}",
        beside / alone >= share,
    )
    for what, each in zip(("/healthz", "file of 4 KB"), answers, strict=True):
        yield Row(f"{title}: {what}", str(each))


def _plan(readers: int) -> Plan:
    places = range(0, LARGE_SIZE // 2, LARGE_SIZE // 2 // SPREAD)
    requests = tuple(Form().head("GET", LARGE_FILE, f"Range: bytes={place}-") for place in places)
    return Plan(requests, readers, rate=RATE, receive_buffer=SMALL_BUFFER, expect_answer=True)


def _speed(port: int, drop: Path | None, seconds: float) -> float:
    """Return the speed of an ordinary download of the file in bytes per second; 0 if a download fails.

    This is the speed of the fastest of several downloads, which other load on the machine disturbed least.
    """
    speeds: list[float] = []
    deadline = time.monotonic() + seconds
    while len(speeds) < 3 or time.monotonic() < deadline:
        if drop:
            drop_pages(drop)
        started = time.monotonic()
        if not _is_downloaded(port):
            return 0.0
        speeds.append(LARGE_SIZE / (time.monotonic() - started))
    return max(speeds)


def _is_downloaded(port: int) -> bool:
    """Download the whole file; returns False if the response is cut, or stops for DOWNLOAD_TIMEOUT."""
    buffer, received = bytearray(1 << 20), 0
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=DOWNLOAD_TIMEOUT) as connection:
            connection.sendall(Form().head("GET", LARGE_FILE, "Connection: close").encode())
            while size := connection.recv_into(buffer):
                received += size
    except (TimeoutError, ConnectionError):
        return False
    return received > LARGE_SIZE  # the body and the head


def drop_pages(file: Path) -> None:
    """Remove the pages of the file from the page cache. The kernel keeps pages that are being sent."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _pages_after_drop(file: Path) -> float:
    """Return how many percent of the file are in the page cache after `drop_pages`."""
    drop_pages(file)
    places = range(0, file.stat().st_size - 4096, 1 << 20)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return 100 * sum(_is_resident(descriptor, place) for place in places) / len(places)
    finally:
        os.close(descriptor)


def _is_resident(descriptor: int, place: int) -> bool:
    try:
        return os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


@contextmanager
def _dropping(file: Path | None) -> Iterator[None]:
    """Remove the pages of the file from the page cache each second, until the end of the ``with``."""
    stop = threading.Event()

    def drop_repeatedly() -> None:
        while file and not stop.wait(DROP_SECONDS):
            drop_pages(file)

    thread = threading.Thread(target=drop_repeatedly)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _tcp_memory() -> int:
    """Return the bytes that TCP uses in the kernel: "mem" in /proc/net/sockstat counts pages, see proc(5)."""
    line = next(line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:"))
    words = line.split()
    return int(words[words.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
