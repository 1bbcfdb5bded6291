"""Text as lines of HTML, highlighted by Pygments if the language is known and the text is not too long."""

import re
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from markupsafe import Markup

from api.view.storelinks import StoreLinks, visible

if TYPE_CHECKING:
    from pygments.lexer import Lexer

# A lexer applies many regular expressions to untrusted text. It gets only as much text as it can usually highlight in a fraction of
# a second. If it runs for longer than _SECONDS, it is stopped.
_SECONDS = 2.0
_LONGEST = 128 * 1024
_LONGEST_LINE = 5000

_SHEBANG_LENGTH = 256  # the length that Linux reads (BINPRM_BUF_SIZE)
_SHEBANG = re.compile(r"#! *(?:/\S*/)?(?:env +(?:-S +)?)?(?:/\S*/)?([a-z]+)")
_BREAK = re.compile("\r\n|\r")

# Prefixes of Pygments' token type names, and the CSS classes in style.css. The longest matching prefix is used.
_CLASSES = {
    "Comment": "c",
    "Comment.Preproc": "d",
    "Keyword": "k",
    "Keyword.Type": "t",
    "Keyword.Constant": "m",
    "Operator.Word": "k",
    "Literal.String": "s",
    "Literal.Number": "m",
    "Name.Builtin": "f",
    "Name.Function": "f",
    "Name.Class": "t",
    "Name.Namespace": "t",
    "Name.Exception": "t",
    "Name.Tag": "k",
    "Name.Attribute": "t",
    "Name.Decorator": "d",
    "Name.Constant": "m",
    "Generic.Heading": "k",
    "Generic.Subheading": "k",
    "Generic.Inserted": "s",
    "Generic.Deleted": "m",
}


def highlighter() -> str:
    """Return the version of the highlighter, for the ETags of pages."""
    from pygments import __version__

    return f"pygments {__version__}"


def lines_of(text: str, links: StoreLinks, name: str = "") -> list[Markup]:
    """Return the lines of ``text``, escaped, with links to store paths.

    The lines are highlighted if the language can be guessed from ``name``, the name of the file, or from the first line. Without a
    name, they are not highlighted.
    """
    text = visible(_BREAK.sub("\n", text)).removesuffix("\n")
    lexer = _lexer(name, text) if name and len(text) <= _LONGEST else None
    if lexer is not None and all(len(line) <= _LONGEST_LINE for line in text.split("\n")):
        try:
            return list(_highlighted(lexer, text + "\n", links))[:-1]  # some lexers need a line break at the end
        except TimeoutError:
            pass
    return [links.linked(line) for line in text.split("\n")]


def _lexer(name: str, text: str) -> "Lexer | None":
    """Choose a lexer by the file name, or by the interpreter in the first line.

    Pygments' own guess is not used because it tries all languages.
    """
    # imported here to keep the start fast
    from pygments.lexers import find_lexer_class_for_filename, get_lexer_by_name
    from pygments.util import ClassNotFound

    options = {"stripnl": False, "ensurenl": False}
    by_name = find_lexer_class_for_filename(name.removesuffix(".in"))
    if by_name is not None:
        return by_name(**options)
    shebang = _SHEBANG.match(text[:_SHEBANG_LENGTH])
    try:
        return get_lexer_by_name(shebang[1], **options) if shebang else None
    except ClassNotFound:
        return None


def _highlighted(lexer: "Lexer", text: str, links: StoreLinks) -> Iterator[Markup]:
    """Yield the highlighted lines. Raises TimeoutError if highlighting takes longer than _SECONDS."""
    for line in _lines(_runs(lexer, text)):
        yield Markup("".join(_spanned(css, part, links) for css, part in line))  # noqa: S704  each part is escaped


def _runs(lexer: "Lexer", text: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of a CSS class and text. Adjacent tokens with the same class are joined, since a path may be several tokens."""
    deadline = time.monotonic() + _SECONDS
    for css, tokens in groupby(lexer.get_tokens(text), key=lambda token: _css(token[0])):
        if time.monotonic() > deadline:
            raise TimeoutError
        yield css, "".join(value for _, value in tokens)


def _lines(runs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    line: list[tuple[str, str]] = []
    for css, text in runs:
        first, *others = text.split("\n")
        line.append((css, first))
        for part in others:
            yield line
            line = [(css, part)]
    yield line


def _spanned(css: str, text: str, links: StoreLinks) -> str:
    linked = links.linked(text)
    return f'<span class="{css}">{linked}</span>' if css and text else linked


@lru_cache(maxsize=256)
def _css(token: object) -> str:
    """Return the CSS class for a Pygments token type, or "". Its string form is the full name: Token.Name.Function.Magic."""
    names = str(token).split(".")[1:]
    known = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((_CLASSES[name] for name in known if name in _CLASSES), "")
