"""Hostile texts for the lexers of Pygments: a page of 50 KB takes a limited time, whatever the lexer does.

``tests.api.lexers`` found the texts. Without a limit, each takes more than 2 s, and some take minutes.
"""

import resource

import pytest

from api.view.highlighter import SECONDS, Highlighter
from api.view.source import Language, language_of, normalized
from api.view.storelinks import StoreLinks
from tests.api.lexers import SIZE, hostile_text, languages, worst
from tests.proofs import length

pytestmark = pytest.mark.slow

LINKS = StoreLinks("/nix/store", "")

# A child takes this much CPU time to start, and to read its input, on a slow machine.
START = 1.0

# A lexer is slow with all files of its language: a name, and the fragment that is repeated, in lines of its own or not.
FOUND = [
    ("a.html", "<!--", True),
    ("a.sp", "", True),
    ("a.css.in", '\\"', True),
    ("a.as", "\\'", True),
    ("a.agda", "", True),
    ("a.awk", '\\"\\"\\"', True),
    ("a.c", "", True),
    ("a.boa", '\\"\\"\\"', False),
]


def cpu_time_of(text: str, language: Language, seconds: float) -> float:
    """Return the CPU time of the child that highlights a text, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = Highlighter(threads=1, seconds=seconds).lines(normalized(text), LINKS, language)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert lines is None or len(lines) == len(normalized(text).split("\n"))
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("name", "fragment", "in_lines"), FOUND)
def test_a_text_that_is_slow_to_highlight_is_stopped(name: str, fragment: str, in_lines: bool) -> None:
    text = hostile_text(fragment, SIZE, in_lines=in_lines)
    language = language_of(name, normalized(text))
    assert language is not None
    assert cpu_time_of(text, language, 0.2) < 0.2 + START


@pytest.mark.proof
@pytest.mark.timeout(10_000)
def test_every_lexer_is_stopped_in_time() -> None:
    for language in languages(length(["JSON", "Nix"], [])):
        found = worst(language)
        text = hostile_text(found.fragment, SIZE, in_lines=found.in_lines)
        assert cpu_time_of(text, language, SECONDS) < SECONDS + START, (language, found)
