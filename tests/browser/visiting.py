"""A window of the browser, and what may not happen in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

from tests.e2e.nixcaches import NixCaches

PHONE = {"width": 360, "height": 740}
TIMEOUT = 10_000  # milliseconds


@dataclass(frozen=True, slots=True)
class Site:
    """A running instance: ``url`` is its origin."""

    url: str
    caches: NixCaches

    def at(self, name: str, rest: str = "/") -> str:
        """The URL of a tree of the end-to-end tests, or below it."""
        return f"{self.url}{self.caches.store_paths[name]}{rest}"


@dataclass(slots=True)
class Visitor:
    """``troubles`` are messages of the console, failures of scripts, dialogs, and requests to other places."""

    page: Page
    site: Site
    troubles: list[str] = field(default_factory=list)

    def open(self, url: str) -> Page:
        response = self.page.goto(url)
        assert response is not None
        assert response.status < 400, (url, response.status)
        return self.page

    def names(self) -> list[str]:
        """The names that the directory page shows just now."""
        return self.page.locator("#entries tbody:not(.up) tr:visible td.name > a:first-child > bdi").all_inner_texts()

    def is_as_wide_as_the_window(self) -> bool:
        return bool(self.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"))

    def _watch(self) -> None:
        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.troubles.append(f"console: {message.text}")

        def asked(request: Request) -> None:
            parts = urlsplit(request.url)
            if f"{parts.scheme}://{parts.netloc}" != self.site.url and parts.scheme not in ("data", "blob"):
                self.troubles.append(f"asked for {request.url}")

        def opened(dialog: Dialog) -> None:
            self.troubles.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        self.page.on("console", said)
        self.page.on("request", asked)
        self.page.on("dialog", opened)
        self.page.on("pageerror", lambda error: self.troubles.append(f"script: {error}"))


@contextmanager
def visiting(browser: Browser, site: Site, **options: Any) -> Iterator[Visitor]:
    """A window with ``options`` of Playwright's new_context; fails at its end if there was any trouble."""
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT)
    try:
        visitor = Visitor(context.new_page(), site)
        visitor._watch()
        yield visitor
        assert visitor.troubles == []
    finally:
        context.close()
