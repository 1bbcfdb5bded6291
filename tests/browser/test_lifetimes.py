"""How long Chromium, with nginx's proxy_cache between, shows a page of an older program, or from a false listing."""

import shutil
import time
from contextlib import suppress
from http.client import IncompleteRead
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from api.http.basis import PAGE, UNVERIFIED
from tests import ROOT, proofs
from tests.api.falselistings import LIES, files_of
from tests.builders import binary_cache, store_path
from tests.commands.running import stored
from tests.server.nginxfront import free_port, nginx
from tests.server.serving import fetch, serving

# The listing has top/index.html, the NAR does not.
LIE, EXTRA = "an index.html is extra", "index.html"
FALSE = f"{store_path('x')}/top/?list"
DATA = f"{store_path('x')}/data"
TRUE = f"{store_path('y')}/"


def version(directory: Path, title: str, lifetimes: dict[str, str]) -> Path:
    """Make a version of the program whose pages show ``title``, with other lifetimes. Returns the directory of its packages."""
    directory.mkdir()
    for package in ("narcore", "narmount", "narserve"):
        (directory / package).symlink_to(ROOT / package)
    shutil.copytree(ROOT / "api", directory / "api", ignore=shutil.ignore_patterns("__pycache__"))
    template = directory / "api/templates/listing.html"
    template.write_text(
        template.read_text().replace('<nav aria-label="Path">', f'<p>{title}</p><nav aria-label="Path">')
    )
    basis = directory / "api/http/basis.py"
    text = basis.read_text()
    for old, new in lifetimes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    basis.write_text(text)
    return directory


def visit(page: Page, url: str) -> str:
    """Open the page as a link does, so that Chromium uses its cache. Returns the text."""
    page.goto("about:blank")
    page.goto(url)
    return page.locator("body").inner_text()


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_false_listing_and_an_old_template_disappear_in_time(browser: Browser, tmp_path: Path) -> None:
    """At full length with the real lifetimes: 5 minutes for a false listing, 10 minutes for a page."""
    false_seconds, page_seconds = proofs.length((12, 18), (300, 600))
    assert f"max-age={300}" in UNVERIFIED
    assert f"max-age={600}," in PAGE
    lifetimes = {"max-age=300": f"max-age={false_seconds}", "max-age=600,": f"max-age={page_seconds},"}
    versions = [version(tmp_path / title, title, lifetimes) for title in ("version-1", "version-2")]
    files = files_of(LIES[LIE], "zstd") | binary_cache({"y": {"f": b"f"}})
    store = stored(tmp_path / "store", files).as_uri()
    front, backend = free_port(), free_port()
    settings = {"HTTP_ADDR": f"127.0.0.1:{backend}", "NAR_CACHE_DIR": str(tmp_path / "nars")}
    config = (ROOT / "deploy/nginx.conf").read_text()
    for old, new in (
        ("listen 80;", f"listen 127.0.0.1:{front};"),
        ("127.0.0.1:8383", f"127.0.0.1:{backend}"),
        ("/var/cache/nginx/nar-serve", f"{tmp_path}/nginx/cache"),
    ):
        config = config.replace(old, new)
    site = f"http://127.0.0.1:{front}"
    context = browser.new_context()
    page = context.new_page()
    with nginx(tmp_path / "nginx", config, front):
        with serving(tmp_path / "one", store, settings=settings, program=versions[0]):
            assert fetch(backend, f"{TRUE}f").body == b"f"  # now its NAR is verified
            assert "version-1" in visit(page, site + TRUE)
            assert EXTRA in visit(page, site + FALSE)
            started = time.monotonic()
            with suppress(IncompleteRead):  # refused or cut, because the listing is wrong
                fetch(backend, DATA)
        with serving(tmp_path / "two", store, settings=settings, program=versions[1]):
            assert len(fetch(backend, DATA).body) == 1000  # its NAR is verified, too
            assert EXTRA not in fetch(backend, FALSE, {"Accept": "text/html"}).text
            assert EXTRA in visit(page, site + FALSE), "the page is cached"
            assert "version-1" in visit(page, site + TRUE), "the page is cached"
            time.sleep(max(0, started + false_seconds + 1 - time.monotonic()))
            assert EXTRA not in visit(page, site + FALSE)
            time.sleep(max(0, started + page_seconds + 1 - time.monotonic()))
            shown = [visit(page, site + TRUE) for _ in range(2)]
            # RFC 5861: the browser may show the old page once more, while it loads the new one.
            assert "version-2" in shown[1]
            fresh = browser.new_context()
            assert "version-2" in visit(fresh.new_page(), site + TRUE)
            fresh.close()
    context.close()
