"""Finds hostile texts for the lexers of Pygments: repeated fragments for which a lexer takes quadratic time or longer.

``python -m tests.api.lexers`` prints the CPU time of the worst text that it finds for each lexer, or for the lexers whose names are
given. It measures without the limit that ``api.view.highlighter`` sets.
"""

import re
import signal
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from types import FrameType
from typing import NamedTuple

from pygments.lexer import Lexer, RegexLexer
from pygments.lexers import find_lexer_class, get_all_lexers

from api.view.source import Language, highlighted_lines
from api.view.storelinks import StoreLinks

# Characters of a text, for the search and for the measurement.
SEARCH_SIZE = 1000
SIZE = 50_000

# Seconds of CPU time after which a measurement ends.
SEARCH_LIMIT = 0.5
LIMIT = 2.5

# Beginnings of comments, strings, blocks, tags and numbers, without their ends, separated by white space.
_FRAGMENTS = r"""
a A 0 0. - -- = == a= a: a, a. a( a[ ( [ { < <a </ <!-- <![ <? <% {{ {% {# # #{ ${ $ $( @ @a & &a % %( * / /* (* // " ' ` ```
\"\"\" ''' \ \" \' "a 'a a" r" ; : :: , . | ~ ^ ! ?
"""
_LITERAL = re.compile(r"(?:[^\w\s\\()\[\]{}?*+|.^$]|\\[^\w\s])[\w<>=!/%#{-]{0,6}")
_LITERALS = 20
_LINE = 500


class Cost(NamedTuple):
    """The CPU time of one text, in seconds; at most the limit of the measurement."""

    seconds: float
    fragment: str
    in_lines: bool


def languages(names: list[str]) -> Iterator[Language]:
    """Yield the lexers of Pygments with these names, or all that the page of a file may use."""
    for name, aliases, filenames, _ in sorted(get_all_lexers()):
        if (aliases or filenames) and (not names or name in names):
            lexer = find_lexer_class(name)
            assert lexer is not None
            yield Language(lexer.__module__, lexer.__name__)


def hostile_text(fragment: str, size: int, *, in_lines: bool) -> str:
    """Repeat a fragment, each in a line of its own, or in lines that are short enough to be highlighted."""
    if in_lines or not fragment:
        return f"{fragment}\n" * (size // (len(fragment) + 1))
    line = fragment * (_LINE // len(fragment)) + "\n"
    return line * (size // len(line))


def worst(language: Language) -> Cost:
    """Return the fragment whose text takes the most time."""
    fragments = dict.fromkeys(["", " ", "\t", "a ", *_FRAGMENTS.split(), *_literals(language)])
    texts = ((fragment, in_lines) for fragment in fragments for in_lines in (False, True))
    return max(measured(language, *text, SEARCH_SIZE, SEARCH_LIMIT) for text in texts)


def _literals(language: Language) -> list[str]:
    """Return beginnings of the regular expressions of a lexer that are literal text."""
    lexer: type[Lexer] = getattr(import_module(language.module), language.lexer)
    if not issubclass(lexer, RegexLexer):
        return []
    tokens = [vars(base).get("tokens", {}) for base in lexer.__mro__]
    rules = [rule for states in tokens for state in states.values() for rule in state]
    sources = "\n".join(rule[0] for rule in rules if isinstance(rule, tuple) and isinstance(rule[0], str))
    return list(dict.fromkeys(match.replace("\\", "") for match in _LITERAL.findall(sources)))[:_LITERALS]


def measured(language: Language, fragment: str, in_lines: bool, size: int, limit: float) -> Cost:
    text = hostile_text(fragment, size, in_lines=in_lines)
    started = time.process_time()
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        highlighted_lines(text, StoreLinks("/nix/store", ""), language)
    except TimeoutError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return Cost(time.process_time() - started, fragment, in_lines)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


def main() -> None:
    for language in languages(sys.argv[1:]):
        found = worst(language)
        cost = measured(language, found.fragment, found.in_lines, SIZE, LIMIT)
        print(f"{cost.seconds:6.2f} {found.seconds:5.2f}  {(*language, found.fragment, found.in_lines)}", flush=True)


if __name__ == "__main__":
    main()
