"""axe-core finds no violation in any page, light or dark, wide or narrow; all controls can be reached with the keyboard."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests import tools
from tests.browser import hostile
from tests.browser.visiting import PHONE, Site, Visitor, visiting
from tests.builders import store_path
from tests.e2e import links, trees

PACKAGE = str(store_path(hostile.PACKAGE_NAME))
HOSTILE = str(store_path(hostile.NAME))

# The rules of WCAG 2.2 AA and axe's best practices; then the rules that depend on colors, and the rules that depend on the width.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RULES_OF_COLOUR = ["color-contrast", "link-in-text-block"]
RULES_OF_LAYOUT = ["target-size", "scrollable-region-focusable", "meta-viewport"]
RUN = "(tags) => axe.run({ runOnly: tags, resultTypes: ['violations'] }).then((found) => found.violations)"


def pages(site: Site) -> dict[str, str]:
    """Return a page of each kind."""
    return {
        "landing": "/",
        "directory": f"{PACKAGE}/",
        "links": site.at(links.LINKS_NAME).removeprefix(site.url),
        "sorted": f"{PACKAGE}/?sort=size&folders=first",
        "odd names": site.at(trees.NAMES_NAME).removeprefix(site.url),
        "hostile names": f"{HOSTILE}/names/",
        "empty directory": site.at("empty-directory").removeprefix(site.url),
        "source": site.at(trees.STDLIB_NAME, "/json/scanner.py?view").removeprefix(site.url),
        "long log": f"{PACKAGE}/log.txt?view",
        "empty file": f"{PACKAGE}/empty?view",
        "bytes": f"{HOSTILE}/bytes?view",
        "image": site.at(trees.TYPES_NAME, "/image.png?view").removeprefix(site.url),
        "derivation": f"{PACKAGE}/hello.drv?view",
        "error": f"{PACKAGE}/none",
    }


@pytest.fixture(scope="session")
def axe() -> str:
    return tools.axe().read_text()


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({"color_scheme": "light"}, RULES),
        ({"color_scheme": "dark"}, RULES_OF_COLOUR),
        ({"viewport": PHONE}, RULES_OF_LAYOUT),
    ],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_no_violation(
    browser: Browser, site: Site, axe: str, options: dict[str, Any], rules: list[str]
) -> None:
    with visiting(browser, site, **options) as visitor:
        found = [each for name, path in pages(site).items() for each in violations(visitor, name, path, axe, rules)]
        visitor.troubles[:] = [
            each for each in visitor.troubles if "404" not in each
        ]  # the error page has the status 404
    assert not found, "\n".join(found)


def violations(visitor: Visitor, name: str, path: str, axe: str, rules: list[str]) -> Iterator[str]:
    visitor.page.goto(visitor.site.url + path)
    visitor.page.evaluate(axe)
    for violation in visitor.page.evaluate(RUN, rules):
        nodes = violation["nodes"]
        first = f"{nodes[0]['html'][:200]}\n    {nodes[0]['failureSummary']}"
        yield f"{name}: {violation['id']}, {violation['help']}, at {len(nodes)} places:\n    {first}"


def test_the_tab_key_reaches_all_controls(visitor: Visitor) -> None:
    """Every focused control has a visible outline."""
    page = visitor.open(f"{visitor.site.url}{PACKAGE}/")
    controls = page.locator("a[href]:visible, button:visible, input:visible, summary:visible, pre[tabindex]:visible")
    reached = set()
    for _ in range(controls.count() + 2):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML"))
        if page.evaluate("document.activeElement !== document.body"):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", page.evaluate("document.activeElement.outerHTML")
    missing = set(controls.evaluate_all("nodes => nodes.map((node) => node.outerHTML)")) - reached
    assert missing == set()
