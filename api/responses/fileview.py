"""The response for ``?view``: a regular file as an HTML page.

The page shows source text, an image, audio or video, a hex dump, the properties of an ELF file, or a derivation. However long the
file is, only the bytes that one page shows are read. A file that the browser displays itself is not read at all.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from markupsafe import Markup
from werkzeug.wrappers import Request

from api.http.basis import PAGE
from api.http.mediatypes import PLAIN, SNIFF_LENGTH, type_by_content, type_by_name
from api.http.negotiation import HTML
from api.http.noderef import NodeRef
from api.http.text import quote_path
from api.responses.base import Response, not_modified, set_validators, text_response
from api.responses.body import Read
from api.responses.templates import PAGE_CSP, page_headers, render, streamed, templates_version
from api.view.elf import MAGIC, ElfFacts, elf_facts
from api.view.filepage import FilePage
from api.view.hexdump import hex_lines
from api.view.highlighter import Highlighter
from api.view.rows import exact_size, file_breadcrumbs
from api.view.source import highlighter_version, language_of, line_blocks, normalized
from api.view.storelinks import Link, StoreLinks
from narcore.errors import FormatError
from narcore.formats.derivation import Derivation
from narcore.formats.listing import Node
from narcore.formats.names import to_text
from narcore.sizes import human_size

# Part of the ETags. Increase it when this module makes another page from the same file.
_ETAG_VERSION = "1"

# File bytes per page, as text and as a hex dump. A text longer than TEXT_PAGE is not highlighted.
TEXT_PAGE = 128 * 1024
HEX_PAGE = 8 * 1024

# A derivation of up to this size is shown on one page; a longer one is shown as text.
DERIVATION_LIMIT = 1 << 20

_EMBEDDED = {"image": "image", "audio": "audio", "video": "video", "application/pdf": "pdf"}
# Media types that some or all browsers can't display.
_NOT_EMBEDDED = (
    "image/tiff",
    "image/heic",
    "image/vnd.djvu",
    "audio/midi",
    "video/x-matroska",
    "video/mpeg",
    "video/x-msvideo",
)


def view_response(
    request: Request, node: Node, ref: NodeRef, read: Read, highlighter: Highlighter, *, prefix: str = ""
) -> Response:
    """Make the page of a regular file. ``prefix`` is the percent-encoded prefix of links to other store paths.

    If the page would take too much time, the response is plain text, which HTTP caches do not store.

    Raises the exceptions of ``read``: all bytes are read before the response begins.
    """
    view = _View(request, node, ref, read, highlighter, prefix)
    version = f"{templates_version()} {_ETAG_VERSION} {highlighter_version()}"
    validators = ref.validators(f"view {version} {view.mode} {view.requested_page}")
    headers = page_headers(request, PAGE_CSP)
    headers["Cache-Control"] = PAGE
    set_validators(headers, validators)
    unchanged = not_modified(request, validators, headers)
    if unchanged:
        return unchanged
    shown = view.shown()
    if shown.kind == "plain":
        return text_response(str(shown.values["text"]))
    headers["Content-Type"] = f"{HTML}; charset=utf-8"
    return streamed(view.render(shown), headers)


@dataclass(frozen=True, slots=True)
class _Shown:
    """The contents to show: the kind selects the part of the template that gets ``values``.

    The kind ``plain`` is not a page, but the ``text`` itself.
    """

    kind: str
    page: FilePage | None = None
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _View:
    """The page of one file."""

    request: Request
    node: Node
    ref: NodeRef
    read: Read
    highlighter: Highlighter
    prefix: str

    @property
    def mode(self) -> str:
        """``hex`` for ``?view=hex``, else "": the contents then determine what is shown."""
        return "hex" if self.request.args.get("view") == "hex" else ""

    @property
    def requested_page(self) -> str | None:
        return self.request.args.get("page")

    def render(self, shown: _Shown) -> Iterator[bytes]:
        href = _own_href(self.request)
        values = {"blocks": (), "hex": [], "elf": None, "derivation": None, "paths": [], **shown.values}
        return render(
            self.request,
            "file.html",
            title=f"{self.ref.store_path}/{self.ref.path}".rstrip("/"),
            name=self.ref.name,
            store_dir=self.ref.store_dir,
            crumbs=file_breadcrumbs(self.ref, href),
            href=href,
            size=human_size(self.node.size),
            exact_size=exact_size(self.node.size),
            executable=self.node.executable,
            media_type=(type_by_name(self.ref.name) or "").partition(";")[0],
            kind=shown.kind,
            mode=self.mode,
            page=shown.page,
            page_links=_page_links(shown.page, self.mode),
            **values,
        )

    def shown(self) -> _Shown:
        """Read what the page shows."""
        media_type = type_by_name(self.ref.name) or ""
        embedded = _EMBEDDED.get(media_type) or _EMBEDDED.get(media_type.partition("/")[0])
        if embedded and media_type not in _NOT_EMBEDDED and not self.mode:
            return _Shown(embedded)
        if not self.node.size:
            return _Shown("empty")
        page = FilePage.of(self.requested_page, self.node.size, TEXT_PAGE)
        data = b"" if self.mode else self._bytes(page.start, page.stop)
        head = data[:SNIFF_LENGTH] if page.number == 1 and data else self._bytes(0, min(self.node.size, SNIFF_LENGTH))
        if self.mode or type_by_content(head, complete=self.node.size <= SNIFF_LENGTH) != PLAIN:
            return self._hex(head)
        return self._derivation() or self._text(data, page)

    def _hex(self, head: bytes) -> _Shown:
        page = FilePage.of(self.requested_page, self.node.size, HEX_PAGE)
        facts = elf_facts(self.read, self.node.size) if head.startswith(MAGIC) and page.number == 1 else None
        return _Shown(
            "hex",
            page,
            {"hex": hex_lines(self._bytes(page.start, page.stop), page.start), "elf": self._linked_facts(facts)},
        )

    def _text(self, data: bytes, page: FilePage) -> _Shown:
        text = normalized(_page_text(data, page))
        links = self._links()
        language = language_of(self.ref.name, text) if page.is_all else None
        lines = self.highlighter.lines(text, links, language)
        if lines is None:
            return _Shown("plain", page, {"text": text})
        paths = links.paths(text) if "/nix-support/" in f"/{self.ref.path}" else []
        return _Shown("text", page, {"blocks": line_blocks(lines, numbered=page.number == 1), "paths": paths})

    def _derivation(self) -> _Shown | None:
        """Return the contents of a derivation, or None if the file is not a derivation or is longer than DERIVATION_LIMIT."""
        if not self.ref.name.endswith(".drv") or self.node.size > DERIVATION_LIMIT:
            return None
        try:
            derivation = Derivation.parse(self._bytes(0, self.node.size))
        except FormatError:
            return None
        links = self._links()
        return _Shown(
            "derivation",
            None,
            {
                "derivation": derivation,
                "linked": links.linked,
                "environment": [(name, _shown_value(value, links)) for name, value in derivation.environment],
            },
        )

    def _linked_facts(self, facts: ElfFacts | None) -> Mapping[str, object] | None:
        if facts is None:
            return None
        linked = self._links().linked
        return {
            **facts._asdict(),
            "interpreter": linked(facts.interpreter),
            "run_path": [linked(path) for path in facts.run_path],
            "needed": [linked(name) for name in facts.needed],
        }

    def _links(self) -> StoreLinks:
        return StoreLinks(self.ref.store_dir, self.prefix)

    def _bytes(self, start: int, stop: int) -> bytes:
        with closing(self.read(start, stop)) as content:
            return b"".join(content)


def _shown_value(value: str, links: StoreLinks) -> list[Markup]:
    return links.linked(normalized(value)).split("\n")


def _page_text(data: bytes, page: FilePage) -> str:
    """Decode a page as UTF-8, without the partial characters at its ends."""
    if page.number > 1:
        data = data.lstrip(bytes(range(0x80, 0xC0)))
    text = data.decode("utf-8", "replace")
    return text if page.number == page.last else text.removesuffix("\ufffd")


def _own_href(request: Request) -> str:
    """Return the URL of the file, relative to its page: the last segment of the URL path, without the query."""
    path: str = request.environ.get("PATH_INFO", "")
    return "./" + quote_path(to_text(path.rpartition("/")[2].encode("latin-1")))


def _page_links(page: FilePage | None, mode: str) -> list[Link]:
    """Return links to the other pages of the file."""
    if page is None or page.is_all:
        return []
    view = f"?view={mode}" if mode else "?view"
    pages = (("First", 1), ("Previous", page.number - 1), ("Next", page.number + 1), ("Last", page.last))
    return [
        Link(label, f"{view}&page={number}")
        for label, number in pages
        if 1 <= number <= page.last and number != page.number
    ]
