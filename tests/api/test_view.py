"""The page of a file: what it shows of each kind of file, how much of the file it reads, and that nothing in it is executed."""

import re
import resource
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from api.responses.fileview import DERIVATION_LIMIT, HEX_PAGE, TEXT_PAGE, view_response
from api.view.elf import elf_facts
from api.view.filepage import FilePage
from api.view.highlighter import Highlighter
from api.view.source import highlighted_lines, language_of, normalized
from api.view.storelinks import StoreLinks
from narcore.errors import TruncatedStream
from tests.api.support import Answer, Headers, Source, answer, file_node, ref, request
from tests.api.test_listings import HOSTILE, Page

HIGHLIGHTER = Highlighter(threads=32)

# Highlighting it takes 20 s of CPU time.
SLOW = b"<!--\n" * 24_000

BASH = f"/nix/store/{'1' * 32}-bash-5.2"
DRV = (
    f'Derive([("out","{BASH}","sha256","ab")],[("/nix/store/{"2" * 32}-gcc.drv",["out"])],["/nix/store/{"3" * 32}-b.sh"],'
    r'"x86_64-linux","/bin/<b>",["-e"],[("phase","one\ntwo"),("<i>","\"")])'
)


def view(
    data: bytes,
    name: str = "doc/a.txt",
    query: str = "?view",
    headers: Headers | None = None,
    source: Source | None = None,
    highlighter: Highlighter = HIGHLIGHTER,
) -> Answer:
    source = source or Source(data, piece=10_000)
    path = name.replace("?", "%3F").replace("#", "%23").encode("utf-8", "surrogateescape").decode("latin-1")
    result = answer(
        request(f"/nix/store/x/{query}", headers=headers, environ={"PATH_INFO": f"/nix/store/x/{path}"}),
        lambda req: view_response(req, file_node(name, len(data)), ref(name), source.read, highlighter, prefix="/prod"),
    )
    assert source.open == 0
    return result


def shown(data: bytes, name: str = "a.txt", query: str = "?view") -> list[str]:
    """Return the lines of text that the page shows."""
    text = view(data, name, query).text
    return re.findall(r'<div class="line"[^>]*>(?:<a [^>]*>\d+</a>)?<code>(.*)\n</code>', text)


def test_the_page_of_a_text_shows_escaped_numbered_lines() -> None:
    result = view(b"one\n<two> & three\n")
    assert result.headers["Content-Type"] == "text/html; charset=utf-8"
    assert result.headers["Cache-Control"] == "public, max-age=600, stale-while-revalidate=86400"
    assert "script-src 'self';" in result.headers["Content-Security-Policy"]
    links = dict(Page(result.text).links)
    assert (links["Raw"], links["Download"], links["Hex dump"]) == ("./a.txt", "./a.txt?download", "?view=hex")
    assert (links["doc"], links["1"], links["2"]) == ("./", "#L1", "#L2")
    assert 'id="L2"' in result.text
    assert shown(b"one\n<two> & three\n") == ["one", "&lt;two&gt; &amp; three"]
    assert "3" not in links, "a line feed ends a line"


def test_a_page_is_revalidated_without_reading_the_file() -> None:
    first = view(b"x")
    source = Source(b"x")
    again = view(b"x", headers={"If-None-Match": first.headers["ETag"]}, source=source)
    assert (again.status, source.reads) == (304, [])
    tags = {first.headers["ETag"], view(b"x", query="?view=hex").headers["ETag"], ref("doc/a.txt").validators().etag}
    assert len(tags) == 3


def test_source_is_highlighted_and_store_paths_are_links() -> None:
    (line,) = shown(f"import x  # {BASH}/bin/sh, or".encode(), "a.py")
    assert '<span class="k">import</span>' in line
    assert f'<a href="/prod{BASH}/bin/sh?view">{BASH}/bin/sh</a>, or' in line
    assert '<span class="c">' in shown(f"#!{BASH}/bin/bash -e\n# x".encode(), "run")[1]
    assert "<span" not in shown(b"# x\n", "a.unknown")[0]
    assert "<span" not in "".join(shown(b"x = 1\n" + b"y" * 6000, "a.py")), "a line is too long for a lexer"


def test_invisible_characters_are_named() -> None:
    assert shown("a\u202eb\x1b[1m\tc\n".encode()) == ["a⟨U+202E RIGHT-TO-LEFT OVERRIDE⟩b⟨1B⟩[1m\tc"]


@given(st.text(max_size=40), st.sampled_from(["a.py", "a.c", "a.html", "a.nix", "a.sh", "a.md", "a.diff"]))
def test_highlighting_loses_no_line_and_adds_no_tag_from_the_text(text: str, name: str) -> None:
    text = normalized(text)
    language = language_of(name, text)
    assert language is not None
    lines = highlighted_lines(text, StoreLinks("/nix/store", ""), language)
    plain = [re.sub("<[^>]*>", "", line) for line in lines]
    assert [Markup(line).unescape() for line in plain] == text.split("\n")
    assert set(re.findall("<[^>]*>", "".join(lines))) <= {f'<span class="{c}">' for c in "cksmdft"} | {"</span>"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_adds_no_tag(name: str) -> None:
    name = name.replace("/", "")
    page, harmless = Page(view(b"x", name).text), Page(view(b"x", "name").text)
    assert sorted(page.tags) == sorted(harmless.tags)
    assert {key for key, _ in page.attributes} == {key for key, _ in harmless.attributes}
    assert dict(page.links)["Raw"].startswith("./")


# --- long files


def test_a_long_text_is_shown_in_pages_and_only_one_page_is_read() -> None:
    data = b"".join(b"%09d\n" % n for n in range(40_000))
    source = Source(data, piece=50_000)
    result = view(data, "big.log", source=source)
    assert sum(stop - start for start, stop in source.reads) <= TEXT_PAGE
    links = dict(Page(result.text).links)
    assert (links["Next"], links["Last"]) == ("?view&page=2", "?view&page=4")
    assert "First" not in links
    second = view(data, "big.log", "?view&page=2").text
    assert 'id="L1"' not in second, "the number of its first line is not known"
    joined = "".join(f"{line}\n" for page in range(1, 5) for line in shown(data, "big.log", f"?view&page={page}"))
    assert joined.replace("\n", "") == data.decode().replace("\n", "")
    assert view(data, "big.log", "?view&page=999").text == view(data, "big.log", "?view&page=4").text


def test_a_character_at_the_end_of_a_page_is_not_broken() -> None:
    data = b"a" + "é".encode() * TEXT_PAGE
    assert "\ufffd" not in view(data, query="?view").text + view(data, query="?view&page=2").text


@given(st.one_of(st.none(), st.text(max_size=6), st.integers().map(str)), st.integers(0, 10**12), st.integers(1, 10**6))
def test_every_page_is_inside_the_file(number: str | None, size: int, length: int) -> None:
    part = FilePage.of(number, size, length)
    assert 1 <= part.number <= part.last
    assert 0 <= part.start <= part.stop <= size
    assert part.stop - part.start <= length


# --- other kinds


@pytest.mark.parametrize(
    ("name", "tag"),
    [("a.png", "img"), ("a.svg", "img"), ("a.mp3", "audio"), ("a.webm", "video"), ("a.pdf", "object")],
)
def test_a_file_that_the_browser_displays_is_not_read(name: str, tag: str) -> None:
    source = Source(b"\x00" * 10**6)
    result = view(source.data, name, source=source)
    assert source.reads == []
    page = Page(result.text)
    assert tag in page.tags
    assert (("data" if tag == "object" else "src"), f"./{name}") in page.attributes


def test_a_binary_file_is_shown_as_a_hex_dump() -> None:
    data = bytes(range(256)) * 100
    text = view(data, "a.bin").text
    assert "00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f" in text
    assert "0123456789:;&lt;=&gt;?" in text
    assert ">00001ff0<" in text
    assert ">00002000<" in view(data, "a.bin", f"?view&page={8192 // HEX_PAGE + 1}").text
    assert "61 62 63" in view(b"abc", query="?view=hex").text
    assert "This file is empty" in view(b"").text


def test_a_derivation_is_shown_with_links_and_escaped() -> None:
    result = view(DRV.encode(), "hello.drv")
    page = Page(result.text)
    links = dict(page.links)
    assert links[BASH] == f"/prod{BASH}?view"
    assert links[f"/nix/store/{'2' * 32}-gcc.drv"].endswith("-gcc.drv?view")
    for text in ("x86_64-linux", "/bin/&lt;b&gt;", "&lt;i&gt;", "one\ntwo", "fixed output: sha256"):
        assert text in result.text
    assert not {"b", "i"} & set(page.tags)
    assert shown(DRV.encode()[:-1], "hello.drv") == [str(StoreLinks("/nix/store", "/prod").linked(DRV[:-1]))]


def test_a_long_derivation_is_shown_as_text() -> None:
    data = DRV.replace("x86_64", "x" * DERIVATION_LIMIT).encode()
    source = Source(data, piece=1 << 16)
    assert "<dt>System" not in view(data, "hello.drv", source=source).text
    assert sum(stop - start for start, stop in source.reads) <= TEXT_PAGE


def test_a_page_that_takes_too_long_is_plain_text_and_not_stored() -> None:
    highlighter = Highlighter(threads=1, seconds=0.3)
    for _ in range(2):  # not remembered
        before = cpu_time_of_children()
        result = view(SLOW, "a.html", highlighter=highlighter)
        assert 0.2 < cpu_time_of_children() - before < 1
        assert (result.status, result.body) == (200, SLOW.removesuffix(b"\n"))
        assert result.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert result.headers["Cache-Control"] == "no-store"
        assert result.headers["X-Content-Type-Options"] == "nosniff"
        assert not {"ETag", "Expires", "Last-Modified"} & set(result.headers.keys())
    assert "<span" in view(b"<a>", "a.html", highlighter=Highlighter(threads=1)).text


def test_a_text_is_highlighted_once() -> None:
    highlighter = Highlighter(threads=1)
    first = view(b"import x\n", "a.py", highlighter=highlighter)
    before = cpu_time_of_children()
    assert view(b"import x\n", "a.py", highlighter=highlighter).text == first.text
    assert cpu_time_of_children() == before
    other = view(b"import y\n", "a.py", highlighter=highlighter)
    assert "y" in other.text, "other bytes under the same URL and ETag"
    assert other.headers["ETag"] == first.headers["ETag"]


def test_a_page_of_line_breaks_is_made_quickly() -> None:
    before = time.process_time()
    assert view(b"\n" * TEXT_PAGE).text.count("<code>") == TEXT_PAGE
    assert time.process_time() - before < 0.8


def test_highlighting_uses_at_most_a_quarter_of_the_threads() -> None:
    highlighter = Highlighter(threads=8, seconds=0.5, patience=0)
    start = threading.Barrier(12)

    def visit(number: int) -> Answer:
        start.wait()
        return view(SLOW + b"%d" % number, "a.html", highlighter=highlighter)

    before = cpu_time_of_children()
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(visit, range(12)))
    assert {result.headers["Cache-Control"] for result in results} == {"no-store"}
    assert cpu_time_of_children() - before < 1.5, "more than two children of 0.5 s"


@contextmanager
def occupied(highlighter: Highlighter) -> Iterator[None]:
    """Highlight a slow text in another thread."""
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(view, SLOW, "a.html", highlighter=highlighter)
        time.sleep(0.1)
        assert not slow.done()
        yield
        assert slow.result().headers["Cache-Control"] == "no-store"


def test_a_text_is_highlighted_after_another_one_is_finished() -> None:
    highlighter = Highlighter(threads=1, seconds=0.3, patience=10)
    with occupied(highlighter):
        assert "<span" in view(b"import x\n", "a.py", highlighter=highlighter).text


def test_a_highlighted_text_is_shown_while_others_are_in_progress() -> None:
    highlighter = Highlighter(threads=1, seconds=0.5, patience=0)
    page = view(b"import x\n", "a.py", highlighter=highlighter).text
    assert "<span" in page
    with occupied(highlighter):
        assert view(b"import x\n", "a.py", highlighter=highlighter).text == page


def cpu_time_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_file_in_nix_support_lists_its_store_paths() -> None:
    text = view(f" {BASH} {BASH}/x\n".encode(), "nix-support/propagated-build-inputs").text
    assert "Store paths in this file" in text
    assert text.count(f'<li><a href="/prod{BASH}') == 2


def test_a_failure_to_read_is_an_error_page() -> None:
    class Broken(Source):
        def read(self, start: int, stop: int):  # type: ignore[no-untyped-def]
            raise TruncatedStream("secret")

    result = view(b"x" * 10, source=Broken(b"x" * 10))
    assert result.status == 502
    assert "secret" not in result.text


# --- ELF


def elf(dynamic: list[tuple[int, int]], strings: bytes, interpreter: bytes = b"/lib/ld.so\0") -> bytes:
    """Make a 64-bit ELF file that has only headers: the file header, three program headers and their contents."""
    base = 64 + 3 * 56
    table = b"".join(struct.pack("<QQ", *entry) for entry in [*dynamic, (0, 0)])
    at_interpreter, at_table = base, base + len(interpreter)
    at_strings = at_table + len(table) + 32
    table = b"".join(struct.pack("<QQ", *entry) for entry in [*dynamic, (5, at_strings), (10, len(strings)), (0, 0)])
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    )

    def segment(kind: int, start: int, size: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 4, start, start, start, size, size, 1)

    size = at_strings + len(strings)
    segments = segment(1, 0, size) + segment(3, at_interpreter, len(interpreter)) + segment(2, at_table, len(table))
    return header + segments + interpreter + table + strings


PROGRAM = elf(
    [(1, 1), (29, 11), (14, 70)], b"\0libc.so.6\0" + f"{BASH}/lib:$ORIGIN".encode() + b"\0" * 10 + b"self.so\0" * 3
)


def test_the_page_of_a_program_shows_its_elf_properties() -> None:
    result = view(PROGRAM, "ls")
    assert "<code>/lib/ld.so</code>" in result.text
    assert "<code>libc.so.6</code>" in result.text
    assert f'<a href="/prod{BASH}/lib?view">' in result.text
    assert "$ORIGIN" in result.text
    assert "7f 45 4c 46" in result.text


@given(st.integers(0, len(PROGRAM) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_program_is_read_within_limits(offset: int, change: bytes) -> None:
    data = PROGRAM[:offset] + change + PROGRAM[offset + len(change) :]
    source = Source(data, piece=1000)
    elf_facts(source.read, len(data))
    assert source.open == 0
    assert len(source.reads) <= 64


def test_the_number_of_bytes_read_from_a_program_is_limited() -> None:
    """The header declares the maximum number of segments, spread over a large file."""
    huge = bytearray(PROGRAM[:64]) + bytes(8 << 20)
    huge[56:58] = struct.pack("<H", 0xFFFF)
    source = Source(bytes(huge), piece=1 << 16)
    elf_facts(source.read, len(huge))
    assert sum(stop - start for start, stop in source.reads) <= 4 << 20


def test_the_needed_libraries_of_a_real_program_are_found() -> None:
    data = Path("/bin/sh").read_bytes()
    facts = elf_facts(Source(data, piece=1 << 16).read, len(data))
    assert facts is not None
    assert any("libc" in name for name in facts.needed)
