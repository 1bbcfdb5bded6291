"""A directory of 100,000 entries: the duration of its page and its listing, and the response times in a browser."""

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from narcore.formats.listing import NarListing
from narcore.formats.nar.events import Data, Directory, DirectoryEnd, NarEvent, Regular
from narcore.formats.nar.parser import parse_nar
from narcore.formats.nar.writer import write_nar
from narcore.formats.nixhash import NixHash
from tests.bench.inprocess import App
from tests.bench.material import CacheDirectory, Nar
from tests.bench.report import Row, alternate, at_most
from tests.bench.servers import nar_serve
from tests.bench.setup import Setup

ENTRIES = 100_000


def directory(setup: Setup) -> Iterator[Row]:
    """A directory of 100,000 entries, cached: its page and its JSON, and the page in Chromium if it is installed."""
    upstream = CacheDirectory(setup.directory / "upstream")
    path = f"{upstream.add('many', _many(setup.directory / 'many.nar'), 'zstd').store_path}/"
    app = App(upstream.url, setup.directory / "cache")
    try:
        assert app.request(path).status == 200
        first, page, json = alternate(
            setup.runs,
            lambda: app.request(path).first_byte,
            lambda: app.request(path).seconds,
            lambda: app.request(path, query="format=json").seconds,
        )
    finally:
        app.close()
    yield at_most(f"page of {ENTRIES:,} entries, first byte", first * 1000, "ms", 100)
    yield at_most(f"page of {ENTRIES:,} entries, complete", page, "s")
    yield at_most(f"JSON of {ENTRIES:,} entries, complete", json, "s", 1)
    if shutil.which("chromium"):
        yield from _in_a_browser(setup, upstream, path)


def _many(file: Path) -> Nar:
    chunks = b"".join(write_nar(_entries()))
    file.write_bytes(chunks)
    return Nar(
        file,
        NarListing.from_events(parse_nar([chunks], contents=False)),
        NixHash("sha256", hashlib.sha256(chunks).digest()),
    )


def _entries() -> Iterator[NarEvent]:
    yield Directory(b"")
    for number in range(ENTRIES):
        yield Regular(b"file-%06d.txt" % number, False, 4)
        yield Data(b"%04d" % (number % 10_000))
    yield DirectoryEnd()


def _in_a_browser(setup: Setup, upstream: CacheDirectory, path: str) -> Iterator[Row]:
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import CHROMIUM, OPTIONS

    with nar_serve(setup.directory, upstream.url) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}{path}")  # fills the cache
        page.reload()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        yield at_most("in Chromium: first contentful paint", paint, "ms")
        yield at_most("in Chromium: end of the load event", loaded / 1000, "s")
        page.keyboard.press("/")
        started = time.perf_counter()
        page.keyboard.type("99999")
        page.wait_for_function("document.getElementById('count').textContent.startsWith('1 of')")
        yield at_most("in Chromium: filter with five key presses", time.perf_counter() - started, "s")
        started = time.perf_counter()
        page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        yield at_most("in Chromium: scroll to the middle", (time.perf_counter() - started) * 1000, "ms")
        browser.close()
