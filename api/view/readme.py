"""The README of a directory: Markdown as safe HTML, anything else as it stands.

What it says is a stranger's. No HTML of its own is let through, no script's URL, and no picture from elsewhere: a reader of the
page tells nobody that it was read.
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

# The parser takes half a second for this much of the worst that can be made for it, and its time grows with the square.
_MARKDOWN_LIMIT = 48 * 1024

_NAMES = ("README.md", "README.markdown", "README", "README.txt", "README.rst", "Readme.md", "readme.md")
_MARKDOWN = (".md", ".markdown")

# A heading of the README is below the page's own and its file name.
_DEEPER = 2


class Readme(NamedTuple):
    """``html`` if it is Markdown, else ``text``."""

    name: str
    html: Markup | None
    text: str


def find_readme(listing: NarListing, node: Node) -> Node | None:
    """The README of a directory, if it has one of a size to be shown."""
    found = (listing.child(node, name) for name in _NAMES)
    return next((child for child in found if child and child.kind is Kind.REGULAR and child.size <= SIZE_LIMIT), None)


def readme_of(name: str, content: bytes) -> Readme:
    text = content.decode("utf-8", "replace")
    if name.lower().endswith(_MARKDOWN) and len(content) <= _MARKDOWN_LIMIT:
        return Readme(name, Markup(_markdown().render(text)), "")  # noqa: S704  that renderer escapes all that is not its own
    return Readme(name, None, text)


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # here, since a start need not wait for it

    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    markdown.core.ruler.push("ours", lambda state: _adapt(state.tokens))
    markdown.add_render_rule("image", _image)
    return markdown


def _adapt(tokens: "Sequence[Token]") -> None:
    """Headings go down, none by more than one step; links say that nobody vouches for them; keys can scroll a wide table."""
    level = _DEEPER
    for token in tokens:
        if token.type == "heading_open":
            level = min(6, int(token.tag[1:]) + _DEEPER, level + 1)
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{level}"
        if token.type == "table_open":
            token.attrSet("tabindex", "0")
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrSet("href", _href(str(inner.attrGet("href") or "")))
                inner.attrSet("rel", "nofollow noreferrer")


def _href(href: str) -> str:
    """Within the store path as written; "/x" would be the server's root, and is left to lead nowhere."""
    return "" if href.startswith("/") and not href.startswith("//") else href


def _image(renderer: Any, tokens: "Sequence[Token]", index: int, options: Any, env: Any) -> str:
    """A picture beside the README is shown; of one elsewhere, its description."""
    token = tokens[index]
    source = str(token.attrGet("src") or "")
    alt = renderer.renderInlineAsText(token.children, options, env)
    if ":" in source or source.startswith("/"):
        return str(Markup('<span class="image">{}</span>').format(alt or "picture"))
    return str(Markup('<img src="{}" alt="{}" loading="lazy">').format(source, alt))
