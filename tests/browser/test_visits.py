"""Typical visits: open a store path, browse, filter, read a source file, link to lines, download a directory."""

import subprocess
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.browser import hostile
from tests.browser.visiting import PHONE, Site, Visitor, visiting
from tests.builders import store_path
from tests.e2e import links, trees

SOURCE = "/json/decoder.py"


def test_links_lead_from_the_landing_page_to_other_store_paths(visitor: Visitor) -> None:
    site, page = visitor.site, visitor.open(visitor.site.url)
    page.get_by_role("textbox").fill(str(store_path(hostile.PACKAGE_NAME)))
    page.get_by_role("button", name="Open").click()
    page.wait_for_url(f"{site.url}{store_path(hostile.PACKAGE_NAME)}/")
    page.get_by_role("link", name=f"{site.caches.store_paths[links.HELLO]}/bin").click()
    page.wait_for_url(site.at(links.HELLO, "/bin/"))
    assert visitor.names() == ["hello", "hi"]
    page.get_by_role("navigation", name="Path").get_by_role("link").first.click()
    page.wait_for_url(site.at(links.HELLO))
    assert visitor.names() == ["bin", "lib", "share"]


def test_a_hash_opens_its_store_path(visitor: Visitor) -> None:
    page = visitor.open(visitor.site.url)
    page.get_by_role("textbox").fill(visitor.site.caches.hash_part(links.HELLO))
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="bin/")).to_be_visible()


def test_a_directory_is_filtered_and_opened_with_the_keyboard(visitor: Visitor) -> None:
    page = visitor.open(visitor.site.at(trees.STDLIB_NAME))
    all_names = visitor.names()
    page.keyboard.press("/")
    page.keyboard.type("JSO")
    expect(page.locator("#count")).to_contain_text(f"of {len(all_names)} entries")
    assert visitor.names() == ["json"] == [name for name in all_names if "jso" in name.lower()]
    page.keyboard.press("Escape")
    expect(page.locator("#count")).to_have_text(f"{len(all_names)} entries")
    assert visitor.names() == all_names
    page.keyboard.type("json")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(visitor.site.at(trees.STDLIB_NAME, "/json/"))
    assert "decoder.py" in visitor.names()
    page.keyboard.press("/")
    page.keyboard.type("no such name")
    expect(page.locator("#count")).to_contain_text("0 of")
    assert visitor.names() == []


def test_entries_are_sorted_by_size(visitor: Visitor) -> None:
    page = visitor.open(visitor.site.at(trees.STDLIB_NAME, "/json/"))
    by_name = visitor.names()
    page.get_by_role("link", name="Largest first").click()
    page.wait_for_url("**/json/?*sort=size*")
    directory = visitor.site.caches.tree(trees.STDLIB_NAME) / "json"
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    assert [sizes[name] for name in visitor.names()] == sorted(sizes.values(), reverse=True)
    assert sorted(visitor.names()) == sorted(by_name)


def test_lines_of_a_source_file_are_linked_and_marked(visitor: Visitor) -> None:
    page = visitor.open(visitor.site.at(trees.STDLIB_NAME, "/json/"))
    page.get_by_role("link", name="decoder.py", exact=True).click()
    page.wait_for_url(visitor.site.at(trees.STDLIB_NAME, f"{SOURCE}?view"))
    source = (visitor.site.caches.tree(trees.STDLIB_NAME) / SOURCE[1:]).read_text().splitlines()
    assert [line.rstrip("\n") for line in page.locator("#source .line code").all_text_contents()] == source
    page.locator("a.number", has_text="10").first.click()
    page.wait_for_url(f"**{SOURCE}?view#L10")
    page.locator("a.number", has_text="20").first.click(modifiers=["Shift"])
    page.wait_for_url(f"**{SOURCE}?view#L10-L20")
    page.reload()
    marked = page.locator(".marked code")
    expect(marked).to_have_count(11)
    assert [line.rstrip("\n") for line in marked.all_text_contents()] == source[9:20]
    expect(page.locator("#L10")).to_be_in_viewport()


def test_a_directory_and_a_file_are_downloaded(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.open(visitor.site.at(links.HELLO, "/share/"))
    for name in ("tar.zst", "zip"):
        with page.expect_download() as downloading:
            page.get_by_role("link", name=name, exact=True).click()
        assert downloading.value.suggested_filename == f"share.{name}"
        downloading.value.save_as(tmp_path / name)
        subprocess.run(["bsdtar", "-xf", tmp_path / name, "-C", tmp_path], check=True)
        expected = visitor.site.caches.tree(links.HELLO) / "share/doc/hello/README"
        assert (tmp_path / "share/doc/hello/README").read_bytes() == expected.read_bytes()
        subprocess.run(["chmod", "-R", "u+w", tmp_path], check=True)
        subprocess.run(["rm", "-r", tmp_path / "share"], check=True)
    page = visitor.open(visitor.site.at(links.HELLO, "/bin/hello?view"))
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download").click()
    assert downloading.value.path().read_bytes() == trees.SCRIPT


def test_pages_work_without_javascript(browser: Browser, site: Site) -> None:
    with visiting(browser, site, java_script_enabled=False) as visitor:
        page = visitor.open(site.url)
        page.get_by_role("textbox").fill(site.caches.store_paths[trees.STDLIB_NAME])
        page.get_by_role("button", name="Open").click()
        page.wait_for_url(site.at(trees.STDLIB_NAME))
        expect(page.get_by_role("searchbox")).to_be_hidden()  # the filter needs JavaScript
        page.get_by_role("link", name="json/", exact=True).click()
        page.get_by_role("link", name="Largest first").click()
        page.wait_for_url("**sort=size*")
        page.get_by_role("link", name="decoder.py", exact=True).click()
        page.locator("a.number", has_text="10").first.click()
        page.wait_for_url(f"**{SOURCE}?view#L10")
        expect(page.locator("#L10")).to_be_in_viewport()


def test_pages_fit_the_screen_of_a_phone(browser: Browser, site: Site) -> None:
    package = f"{site.url}{store_path(hostile.PACKAGE_NAME)}"
    urls = [
        *(
            site.url,
            site.at(links.HELLO),
            site.at(links.LINKS_NAME),
            site.at(trees.NAMES_NAME),
            site.at(trees.STDLIB_NAME),
        ),
        *(site.at(trees.STDLIB_NAME, f"{SOURCE}?view"), site.at(links.HELLO, "/lib/libhello.so.1.2?view")),
        *(f"{package}/", f"{package}/hello.drv?view", f"{package}/log.txt?view", f"{package}/empty?view"),
        f"{site.url}{store_path(hostile.NAME)}/names/",
    ]
    with visiting(browser, site, viewport=PHONE, has_touch=True, is_mobile=True) as visitor:
        for url in urls:
            visitor.open(url)
            assert visitor.fits_the_window_width(), url
        page = visitor.open(site.at(links.HELLO))
        page.get_by_role("link", name="share/", exact=True).tap()
        page.wait_for_url(site.at(links.HELLO, "/share/"))
