"""The README of a directory: Markdown as safe HTML, any other format as plain text.

A README is untrusted. The page leaves out its raw HTML, its script URLs, and its images on other servers. A browser that opens the
page therefore sends no request to another server.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from narcore.formats.listing import Kind, NarListing, Node

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

SIZE_LIMIT = 256 * 1024

# The parser takes half a second for the worst input of this size. The time grows with the square of the size.
_MARKDOWN_LIMIT = 48 * 1024

_NAMES = ("README.md", "README.markdown", "README", "README.txt", "README.rst", "Readme.md", "readme.md")
_MARKDOWN = (".md", ".markdown")

# Headings of the README are two levels deeper: they follow the heading of the page and the file name of the README.
_LEVEL_SHIFT = 2


class Readme(NamedTuple):
    """A README: ``html`` if it is Markdown, else ``text``."""

    name: str
    html: Markup | None
    text: str


def find_readme(listing: NarListing, node: Node) -> Node | None:
    """Return the README of a directory, or None if it has none that is at most SIZE_LIMIT bytes long."""
    found = (listing.child(node, name) for name in _NAMES)
    return next((child for child in found if child and child.kind is Kind.REGULAR and child.size <= SIZE_LIMIT), None)


def readme_of(name: str, content: bytes) -> Readme:
    """Render a README. A Markdown file that is too long for the parser is shown as text."""
    text = content.decode("utf-8", "replace")
    if name.lower().endswith(_MARKDOWN) and len(content) <= _MARKDOWN_LIMIT:
        return Readme(name, Markup(_markdown().render(text)), "")  # noqa: S704  the renderer escapes everything except its own tags
    return Readme(name, None, text)


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # imported here to keep the start fast

    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    markdown.core.ruler.push("ours", lambda state: _adapt(state.tokens))
    markdown.add_render_rule("image", _image)
    return markdown


def _adapt(tokens: "Sequence[Token]") -> None:
    """Adapt the README to the page.

    Headings are moved down without skipping a level. Links get rel=nofollow noreferrer. Tables become focusable, so that a wide
    table can be scrolled with the keyboard.
    """
    level = _LEVEL_SHIFT
    for token in tokens:
        if token.type == "heading_open":
            level = min(6, int(token.tag[1:]) + _LEVEL_SHIFT, level + 1)
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{level}"
        if token.type == "table_open":
            token.attrSet("tabindex", "0")
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrSet("href", _href(str(inner.attrGet("href") or "")))
                inner.attrSet("rel", "nofollow noreferrer")


def _href(href: str) -> str:
    """Return the target of a link. A link such as "/x" is removed, because it would lead to the root of the server."""
    return "" if href.startswith("/") and not href.startswith("//") else href


def _image(renderer: Any, tokens: "Sequence[Token]", index: int, options: Any, env: Any) -> str:
    """Render an image as ``<img>`` if it is in the same store path, else as its description."""
    token = tokens[index]
    source = str(token.attrGet("src") or "")
    alt = renderer.renderInlineAsText(token.children, options, env)
    if ":" in source or source.startswith("/"):
        return str(Markup('<span class="image">{}</span>').format(alt or "image"))
    return str(Markup('<img src="{}" alt="{}" loading="lazy">').format(source, alt))
