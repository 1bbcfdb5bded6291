"""Two stores, each correct or with a fault: what a client gets, in one table."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import NarcoreError
from narcore.lookup.lookup import Strategy
from narcore.lookup.substituter import Substituter
from narcore.settings import Settings
from tests.lookup.stores import CONTENTS, FAULTS, KEY, URL, Stores, stores

pytestmark = pytest.mark.slow

# Each row is a fault of the first store, each column a fault of the second store. The cell is the answer:
#
#   ok    the whole file, with the right bytes
#   404   both stores answer that they do not have the path
#   502   some stores could not be asked, and the others do not have the path
#   504   some stores were too slow, and the others do not have the path
#   sig   502: the only store that has the path has no signature
#   bad   502, or the connection is cut before the file is complete: never a complete answer
#   a>b   a for the first request, b for the second
#
# The table holds for both strategies, with and without the disk cache.
TABLE = """
          has     404  403  500  slow  refused  forged  unsigned  cut
has       ok      ok   ok   ok   ok    ok       ok      ok        ok
404       ok      404  404  502  504   502      bad     sig       bad
403       ok      404  404  502  504   502      bad     sig       bad
500       ok      502  502  502  502   502      bad     502       bad
slow      ok      504  504  502  504   502      bad     504       bad
refused   ok      502  502  502  502   502      bad     502       bad
forged    bad>ok  bad  bad  bad  bad   bad      bad     bad       bad
unsigned  ok      sig  sig  502  504   502      bad     sig       bad
cut       ok      bad  bad  bad  bad   bad      bad     bad       bad
"""

HEADER, *LINES = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {(line[0], second): cell for line in LINES for second, cell in zip(HEADER, line[1:], strict=True)}

SAYS = {
    502: {"Some caches are unavailable": "502", "trusted public keys": "sig"},
    504: {"Some caches timed out": "504"},
    404: {"None of the configured binary caches has it": "404"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Stores]:
    with stores() as server:
        yield server


def test_table_has_every_pair() -> None:
    assert EXPECTED.keys() == {(first, second) for first in FAULTS for second in FAULTS}


@pytest.mark.parametrize("first", FAULTS)
@pytest.mark.parametrize("uses_cache", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("strategy", ["ordered", "parallel"])
def test_answers_of_two_stores_are_those_of_the_table(
    server: Stores, tmp_path: Path, strategy: Strategy, uses_cache: bool, first: str
) -> None:
    def site(second: str) -> Flask:
        nars = NarCache(tmp_path / second, size=lambda _directory: 1 << 30, max_fills=4) if uses_cache else None
        # Two compressions: one store continues the NAR of the other.
        both = [server.open(first, "zstd"), server.open(second, "xz")]
        substituters = [Substituter(store, priority=place) for place, store in enumerate(both)]
        cache = BinaryCache(substituters, strategy=strategy, trusted_keys=[KEY.public_key], cache=nars)
        closing.callback(cache.close)
        return create_app(Settings(), cache)

    def play(app: Flask) -> str:
        answers = [ask(app), ask(app)]
        return answers[0] if answers[0] == answers[1] else ">".join(answers)

    with ExitStack() as closing, ThreadPoolExecutor(len(FAULTS)) as pool:
        # Created sequentially: Werkzeug's routes use the ast module, which Python 3.11 can't use in two threads.
        sites = [site(second) for second in FAULTS]
        found = dict(zip(FAULTS, pool.map(play, sites), strict=True))
    assert found == {second: EXPECTED[first, second] for second in FAULTS}


def ask(app: Flask) -> str:
    """Request the file, and return the result in the words of the table."""
    response = app.test_client().get(URL)
    try:
        body = response.get_data()
    except NarcoreError:
        return "bad"
    finally:
        response.close()
    if response.status_code == 200:
        return "ok" if body == CONTENTS and response.content_length == len(CONTENTS) else "wrong"
    says = SAYS.get(response.status_code, {})
    return next((word for phrase, word in says.items() if phrase in body.decode()), "bad")
