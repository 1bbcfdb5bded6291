"""Names and contents of a store path are text in the pages: they execute nothing, load nothing and link to no other site."""

import pytest

from api.http.text import display
from tests.browser import hostile
from tests.browser.visiting import Visitor
from tests.builders import store_path
from tests.e2e import trees

ROOT = str(store_path(hostile.NAME))


def assert_nothing_was_executed(visitor: Visitor) -> None:
    """Wait until the page is loaded and the network is idle, then check that no script of a store path was executed."""
    visitor.page.wait_for_load_state("networkidle")
    assert visitor.page.evaluate("window.ran") is None
    assert visitor.troubles == []


def test_names_are_shown_as_text(visitor: Visitor) -> None:
    page = visitor.open(f"{visitor.site.url}{ROOT}/names/")
    expected = sorted(hostile.NAMES, key=str.encode)
    shown = page.locator("#entries tbody:not(.up) td.name bdi").all_text_contents()
    assert shown == [display(name) for name in expected]
    assert page.locator("#entries img, #entries script, #entries svg").count() == 0
    assert_nothing_was_executed(visitor)


def test_targets_of_symbolic_links_are_shown_as_text(visitor: Visitor) -> None:
    page = visitor.open(f"{visitor.site.url}{ROOT}/links/")
    shown = page.locator("#entries .target").all_text_contents()
    assert sorted(shown) == sorted(map(display, hostile.NAMES))
    hrefs = page.locator("#entries a").evaluate_all("links => links.map((link) => link.protocol)")
    assert set(hrefs) == {"http:"}
    assert_nothing_was_executed(visitor)


def test_each_name_links_to_its_file(visitor: Visitor) -> None:
    page = visitor.open(f"{visitor.site.url}{ROOT}/names/")
    for href in page.locator("#entries tbody:not(.up) td.name a").evaluate_all(
        "links => links.map((link) => link.href)"
    ):
        visitor.open(href)
        assert hostile.MARKUP.decode() in page.locator("main").inner_text()
        assert page.evaluate("window.ran") is None
    assert_nothing_was_executed(visitor)


@pytest.mark.parametrize("name", ["script.js", "%3Cb%3E.py", "page.html", "image.svg", "bytes"])
def test_contents_are_shown_as_text(visitor: Visitor, name: str) -> None:
    visitor.open(f"{visitor.site.url}{ROOT}/{name}?view")
    assert_nothing_was_executed(visitor)


def test_a_readme_contains_no_active_html(visitor: Visitor) -> None:
    page = visitor.open(f"{visitor.site.url}{ROOT}/readme/")
    readme = page.locator(".readme")
    assert readme.is_visible()
    assert readme.locator("table").count() == 1
    assert readme.locator("script, iframe, form, style, img, input").count() == 0
    hrefs = readme.locator("a").evaluate_all("links => links.map((link) => link.protocol)")
    assert set(hrefs) <= {"http:", "https:"}
    assert_nothing_was_executed(visitor)


def test_an_html_file_of_a_store_path_has_an_opaque_origin(visitor: Visitor) -> None:
    """A raw HTML file may execute scripts, but not with the origin that all store paths share."""
    page = visitor.page
    page.goto(f"{visitor.site.url}{ROOT}/page.html")
    assert page.evaluate("window.ran") == 1
    assert page.evaluate("self.origin") == "null"
    visitor.troubles.clear()  # the image "x" does not exist, which the console reports


def test_unusual_file_names_are_shown_as_text(visitor: Visitor) -> None:
    page = visitor.open(visitor.site.at(trees.NAMES_NAME))
    tree = visitor.site.caches.tree(trees.NAMES_NAME)
    shown = page.locator("#entries tbody:not(.up) td.name a:first-child > bdi").all_text_contents()
    assert len(shown) == sum(1 for _ in tree.iterdir())
    assert page.locator("#entries script, #entries b").count() == 0
    assert_nothing_was_executed(visitor)


def test_an_error_shows_the_requested_path_as_text(visitor: Visitor) -> None:
    page = visitor.page
    for path in (f"{ROOT}/%3Cimg%20src=x%20onerror=alert(1)%3E", "/nix/store/%3Cscript%3Ealert(1)%3C/script%3E"):
        response = page.goto(f"{visitor.site.url}{path}")
        assert response is not None
        assert response.status in (400, 404)
        assert "<" in page.locator("main").inner_text()
        visitor.troubles[:] = [each for each in visitor.troubles if "status of 40" not in each]
        assert_nothing_was_executed(visitor)
