"""A browser window that records troubles: errors, dialogs, and requests to other sites."""

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
    """A running server: ``url`` is its origin."""

    url: str
    caches: NixCaches

    def at(self, name: str, rest: str = "/") -> str:
        """Return the URL of ``rest`` in a tree of the end-to-end tests."""
        return f"{self.url}{self.caches.store_paths[name]}{rest}"


@dataclass(slots=True)
class Visitor:
    """A browser window. ``troubles`` are console messages, script errors, dialogs, and requests to other sites."""

    page: Page
    site: Site
    troubles: list[str] = field(default_factory=list)

    def open(self, url: str) -> Page:
        response = self.page.goto(url)
        assert response is not None
        assert response.status < 400, (url, response.status)
        return self.page

    def names(self) -> list[str]:
        """Return the names that the directory page currently shows."""
        return self.page.locator("#entries tbody:not(.up) tr:visible td.name > a:first-child > bdi").all_inner_texts()

    def fits_the_window_width(self) -> bool:
        return bool(self.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"))

    def watch(self) -> None:
        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.troubles.append(f"console: {message.text}")

        def on_request(request: Request) -> None:
            parts = urlsplit(request.url)
            if f"{parts.scheme}://{parts.netloc}" != self.site.url and parts.scheme not in ("data", "blob"):
                self.troubles.append(f"request to {request.url}")

        def on_dialog(dialog: Dialog) -> None:
            self.troubles.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        self.page.on("console", on_console)
        self.page.on("request", on_request)
        self.page.on("dialog", on_dialog)
        self.page.on("pageerror", lambda error: self.troubles.append(f"script: {error}"))


@contextmanager
def visiting(browser: Browser, site: Site, **options: Any) -> Iterator[Visitor]:
    """Open a window with ``options`` for Playwright's new_context. Fails at the end if there were any troubles."""
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT)
    try:
        visitor = Visitor(context.new_page(), site)
        visitor.watch()
        yield visitor
        assert visitor.troubles == []
    finally:
        context.close()
