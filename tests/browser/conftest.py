"""Fixtures of the browser tests: Chromium, and the application with gunicorn and binary caches that Nix wrote."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests import needs
from tests.browser import hostile
from tests.browser.visiting import Site, Visitor, visiting
from tests.builders import binary_cache
from tests.commands.running import stored
from tests.e2e import fronts, nixcaches
from tests.e2e.nixcaches import NixCaches

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# No sandbox, because continuous integration runs as root. No background networking, because tests use only this machine.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")


@pytest.fixture(scope="session")
def caches() -> NixCaches:
    """The binary caches that a real Nix wrote. Skips the test if Nix or Chromium is not installed."""
    if CHROMIUM is None:
        needs.program("chromium")
    return nixcaches.build()


# The scope is the package, because Playwright's synchronous API keeps an event loop running, which prevents other asyncio tests.
@pytest.fixture(scope="package")
def browser(caches: NixCaches) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site(caches: NixCaches, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with the trees of the end-to-end tests and the trees in ``hostile``."""
    directory: Path = tmp_path_factory.mktemp("site")
    others = stored(
        directory / "others", binary_cache({hostile.NAME: hostile.TREE, hostile.PACKAGE_NAME: hostile.PACKAGE})
    )
    stores = [caches.cache("zstd").as_uri(), others.as_uri()]
    settings = {"NAR_CACHE_URL": " ".join(stores), "NAR_CACHE_DIR": str(directory / "cache")}
    with fronts.running(settings, directory / "log") as front:
        yield Site(front.url, caches)


@pytest.fixture
def visitor(browser: Browser, site: Site) -> Iterator[Visitor]:
    """A new browser window. The test fails if the window has any troubles."""
    with visiting(browser, site) as visitor:
        yield visitor
