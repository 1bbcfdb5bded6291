"""Text as lines of HTML (escaped text), highlighted by Pygments if the language is known and the text is not too long.

``api.view.highlighter`` runs this module as a program that highlights one text, and its docstring gives the reason.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import import_module
from itertools import groupby, islice
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from api.view.storelinks import StoreLinks, visible

if TYPE_CHECKING:
    from pygments.lexer import Lexer

# A lexer applies many regular expressions to untrusted text. It gets only as much text as it can usually highlight in a fraction of
# a second.
_LONGEST = 128 * 1024
_LONGEST_LINE = 5000

_SHEBANG_LENGTH = 256  # the length that Linux reads (BINPRM_BUF_SIZE)
_SHEBANG = re.compile(r"#! *(?:/\S*/)?(?:env +(?:-S +)?)?(?:/\S*/)?([a-z]+)")
_BREAK = re.compile("\r\n|\r")

# The elements of a line, and the number of lines that are made at once.
_NUMBERED = '<div class="line" id="L%d"><a class="number" href="#L%d">%d</a><code>%s\n</code></div>'
_UNNUMBERED = '<div class="line"><code>%s\n</code></div>'
_BLOCK = 500

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


def highlighter_version() -> str:
    """Return the version of the highlighter, for the ETags of pages."""
    from pygments import __version__

    return f"pygments {__version__}"


class Language(NamedTuple):
    """A lexer of Pygments: the names of its module and of its class."""

    module: str
    lexer: str


def normalized(text: str) -> str:
    """Return ``text`` as a page shows it: with visible names of invisible characters, and without the last line break."""
    return visible(_BREAK.sub("\n", text)).removesuffix("\n")


def plain_lines(text: str, links: StoreLinks) -> list[str]:
    """Return the lines of a normalized text as HTML, with links to store paths."""
    return str(links.linked(text)).split("\n")  # a link is in one line, since no store path contains a line break


def line_blocks(lines: Iterable[str], *, numbered: bool) -> Iterator[Markup]:
    """Yield the elements of lines of HTML in blocks, so that a long page is never completely in memory.

    A loop in a template would take ten times as long: a second for a page of line breaks.
    """
    numbered_lines = enumerate(lines, 1)
    while block := list(islice(numbered_lines, _BLOCK)):
        if numbered:
            yield Markup("\n".join(_NUMBERED % (number, number, number, line) for number, line in block))  # noqa: S704  escaped
        else:
            yield Markup("\n".join(_UNNUMBERED % line for _, line in block))  # noqa: S704  escaped


def language_of(name: str, text: str) -> Language | None:
    """Choose the language of a file by its name, or by the interpreter in the first line of its normalized text.

    Returns None if the language is unknown, or if the text or one of its lines is too long to be highlighted. Pygments' own guess
    is not used, because it tries all languages.
    """
    if not name or len(text) > _LONGEST or any(len(line) > _LONGEST_LINE for line in text.split("\n")):
        return None
    # imported here to keep the start fast
    from pygments.lexers import find_lexer_class_by_name, find_lexer_class_for_filename
    from pygments.util import ClassNotFound

    found = find_lexer_class_for_filename(name.removesuffix(".in"))
    shebang = _SHEBANG.match(text[:_SHEBANG_LENGTH]) if found is None else None
    try:
        found = find_lexer_class_by_name(shebang[1]) if shebang else found
    except ClassNotFound:
        return None
    return Language(found.__module__, found.__name__) if found else None


def highlighted_lines(text: str, links: StoreLinks, language: Language) -> list[str]:
    """Return the lines of a normalized text as HTML, highlighted, with links to store paths. May take very long."""
    lexer = getattr(import_module(language.module), language.lexer)(stripnl=False, ensurenl=False)
    return list(_highlighted(lexer, text + "\n", links))[:-1]  # some lexers need a line break at the end


def _highlighted(lexer: "Lexer", text: str, links: StoreLinks) -> Iterator[str]:
    for line in _lines(_runs(lexer, text)):
        yield "".join(_spanned(css, part, links) for css, part in line)


def _runs(lexer: "Lexer", text: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of a CSS class and text. Adjacent tokens with the same class are joined, since a path may be several tokens."""
    for css, tokens in groupby(lexer.get_tokens(text), key=lambda token: _css(token[0])):
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
    """Return the CSS class for a Pygments token type, or "". ``str(token)`` is a full name such as Token.Name.Function.Magic."""
    names = str(token).split(".")[1:]
    known = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((_CLASSES[name] for name in known if name in _CLASSES), "")


def main() -> None:
    """Highlight the text on standard input; see ``Highlighter``. The process ends when it has used its CPU time."""
    task = json.loads(sys.stdin.buffer.read())
    os.nice(10)  # the threads of the server run first
    signal.setitimer(signal.ITIMER_PROF, task["seconds"])  # SIGPROF ends the process, even within a regular expression
    links = StoreLinks(task["store_dir"], task["prefix"])
    lines = highlighted_lines(task["text"], links, Language(*task["language"]))
    sys.stdout.buffer.write("\n".join(lines).encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    main()
