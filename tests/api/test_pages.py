"""The landing page, and the static files of the pages."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.responses.landing import Cache, State, landing_response
from api.responses.templates import STATIC_PREFIX, static_response
from api.view.recent import RecentPaths
from api.view.typed import typed_path
from narcore.errors import StorePathError
from tests.api.support import Answer, Headers, answer, request
from tests.api.test_listings import Page


def landing(headers: Headers | None = None, method: str = "GET", script_name: str = "", **values: object) -> Answer:
    options = {"caches": [Cache("https://cache.example.org")], "store_dir": "/nix/store", **values}
    return answer(
        request("/", method, headers, {"SCRIPT_NAME": script_name}),
        lambda req: landing_response(req, **options),  # type: ignore[arg-type]
    )


def test_the_landing_page_has_a_form_examples_and_no_script() -> None:
    examples = [("A <b> program", "/nix/store/x/bin/a%20b"), ("Its directory", "/nix/store/x/bin/")]
    result = landing(examples=examples)
    assert result.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "https://cache.example.org" in result.text
    page = Page(result.text)
    assert ("A <b> program", "/nix/store/x/bin/a%20b") in page.links
    attributes = page.attributes
    assert {"form", "input", "button", "label"} <= set(page.tags)
    assert ("method", "get") in attributes
    assert ("action", "/") in attributes
    assert ("name", "path") in attributes
    assert not {"script", "style"} & set(page.tags)
    assert not [name for name, _ in attributes if name == "style" or name.startswith("on")]
    assert "form-action 'self'" in result.headers["Content-Security-Policy"]
    assert result.headers["X-Content-Type-Options"] == "nosniff"


def test_all_links_of_the_landing_page_begin_with_script_name() -> None:
    result = landing(script_name="/prod", examples=[("x", "/nix/store/x")])
    urls = [value for name, value in Page(result.text).attributes if name in ("href", "src", "action")]
    assert len(urls) >= 5
    assert all(url and url.startswith("/prod/") for url in urls)


def test_caches_are_listed_in_order_with_store_dir_and_state() -> None:
    caches = [
        Cache("https://a.example", "/nix/store", State.AVAILABLE),
        Cache("https://b.example", "", State.UNAVAILABLE),
        Cache("https://c", "/<x>"),
    ]
    text = landing(caches=caches).text
    assert text.index("a.example") < text.index("b.example")
    shown = re.findall(r"<li><code>(.*?)</code>(?: for <code>(.*?)</code>)? <span", text)
    assert shown == [("https://a.example", "/nix/store"), ("https://b.example", ""), ("https://c", "/&lt;x&gt;")]
    assert re.findall(r'<span class="state (\w+)">', text) == ["available", "unavailable", "unknown"]


def test_recently_opened_store_paths_are_listed() -> None:
    paths = RecentPaths(size=2)
    for path in ("/nix/store/a", "/nix/store/b", "/nix/store/a", "/nix/store/c"):
        paths.add(path)
    assert paths.latest_first() == ["/nix/store/c", "/nix/store/a"]
    text = landing(recent=[f"/gnu/store/{HASH}-c++"], script_name="/prod").text
    assert (f"/prod/gnu/store/{HASH}-c%2B%2B", "c++") in [(href, text) for text, href in Page(text).links]
    assert "Recently opened" not in landing().text


HASH = "0c0jn4b2x5k2s6v1zqmz3n2a9wqjkvfd"
PATH = f"/nix/store/{HASH}-hello-2.12"


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        (f" {PATH} ", PATH),
        (f"{PATH}/bin/a b", f"{PATH}/bin/a b"),
        (f"'{PATH}/'", f"{PATH}/"),
        ("/else/where", "/else/where"),
        (HASH, HASH),
        (f"{HASH}-hello-2.12/bin", f"{HASH}-hello-2.12/bin"),
        (f"{HASH}.narinfo", HASH),
        (f"{PATH}.drv!out", f"{PATH}.drv"),
        (f"nix-store -r {PATH}", PATH),
        (f"$ nix-store -r {PATH}.drv^out,dev", f"{PATH}.drv"),
        (f"nix copy --from https://cache.nixos.org {PATH}", PATH),
        (f"nix-store -r {PATH} --option extra-substituters 'https://c.example/a'", PATH),
        (f"curl -L 'https://files.example{PATH}/?format=tar.zst' | tar --zstd -x", f"{PATH}/"),
        (f"nix-store --realise {HASH}-hello-2.12", f"{HASH}-hello-2.12"),
        (f"https://cache.nixos.org/{HASH}.narinfo", HASH),
        (f"https://cache.nixos.org/{HASH}.ls", HASH),
        (f"http://localhost:8383{PATH}/share/a%20b?view#L1", f"{PATH}/share/a b"),
        (f"https://x.example/prod{PATH}/bin", f"{PATH}/bin"),
        (f"https://x.example/unpack/gnu/store/{HASH}-x/bin", f"/gnu/store/{HASH}-x/bin"),
        (f"https://{HASH}.files.example/bin/hello", f"{HASH}/bin/hello"),
        (f"s3://bucket/{HASH}.narinfo?region=eu", HASH),
    ],
)
def test_the_store_path_in_a_pasted_text_is_found(typed: str, path: str) -> None:
    assert typed_path(typed, ["/nix/store", "/gnu/store"]) == path


@pytest.mark.parametrize(
    "typed", ["", "hello", "https://cache.nixos.org/nar/abc.nar.xz", "nix-store -r hello", "https://[", f"{HASH}"[:31]]
)
def test_a_text_without_a_store_path_raises(typed: str) -> None:
    with pytest.raises(StorePathError):
        typed_path(typed, ["/nix/store"])


@given(st.text(max_size=60) | st.text(alphabet="/:.-!nixstore0 'ht", max_size=60))
def test_any_text_either_has_a_path_or_raises_store_path_error(typed: str) -> None:
    with suppress(StorePathError):
        assert typed_path(typed, ["/nix/store"])


def test_the_landing_page_is_revalidated_by_its_etag() -> None:
    first = landing()
    assert first.headers["Cache-Control"] == "no-cache"
    again = landing({"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert landing(caches=[Cache("https://other.example")]).headers["ETag"] != first.headers["ETag"]
    head = landing(method="HEAD")
    assert (head.body, head.headers["Content-Length"]) == (b"", str(len(first.body)))


def test_static_files_exist_and_are_immutable() -> None:
    urls = set(re.findall(rf'"({STATIC_PREFIX}[^"]+)"', landing().text))
    assert len(urls) == 2
    for url in urls:
        name = url.removeprefix(STATIC_PREFIX).partition("?")[0]
        result = answer(request(url), lambda req, name=name: static_response(req, name))  # type: ignore[misc]
        assert result.status == 200
        assert "immutable" in result.headers["Cache-Control"]
        assert result.headers["Content-Type"] in ("text/css; charset=utf-8", "image/svg+xml")
        unchanged = request(url, headers={"If-None-Match": result.headers["ETag"]})
        assert answer(unchanged, lambda req, name=name: static_response(req, name)).status == 304  # type: ignore[misc]


def test_a_static_file_without_the_current_version_is_not_cached() -> None:
    for url in ("/", "/?v=old"):
        result = answer(request(url), lambda req: static_response(req, "style.css"))
        assert (result.status, result.headers["Cache-Control"]) == (200, "no-cache")


def test_only_known_static_files_are_served() -> None:
    for name in ("", "../errors.py", "..", "style.css/", "/etc/passwd"):
        result = answer(request(), lambda req, name=name: static_response(req, name))  # type: ignore[misc]
        assert result.status == 404
