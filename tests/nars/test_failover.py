"""A NAR whose store fails in between is continued from another store, without fetching any byte twice if possible."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.lookup.substituter import Substituter
from narcore.settings import Settings
from tests.lookup.stores import KEY, Stores, files, stores
from tests.lookup.test_two_stores import ask


@pytest.fixture(scope="module")
def server() -> Iterator[Stores]:
    with stores() as server:
        yield server


def kind(path: str) -> str:
    return "nar" if path.startswith("nar/") else path.rpartition(".")[2]


@pytest.mark.parametrize("uses_cache", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("compressions", [("zstd", "zstd"), ("xz", "none"), ("none", "none"), ("none", "xz")])
def test_nar_is_continued_from_another_store(
    server: Stores, tmp_path: Path, compressions: tuple[str, str], uses_cache: bool, request: pytest.FixtureRequest
) -> None:
    mark = request.node.callspec.id
    both = [
        Substituter(server.open(fault, compression, mark=mark + fault), priority=place)
        for place, (fault, compression) in enumerate(zip(("cut", "has"), compressions, strict=True))
    ]
    with ExitStack() as stack:
        nars = NarCache(tmp_path, size=lambda _directory: 1 << 30, max_fills=4) if uses_cache else None
        cache = BinaryCache(both, trusted_keys=[KEY.public_key], cache=nars)
        stack.callback(cache.close)
        app = create_app(Settings(), cache)
        assert ask(app) == "ok"
        assert sorted(map(kind, server.asked(mark + "cut"))) == ["ls", "nar", "narinfo"]
        asked = sorted(map(kind, server.asked(mark + "has")))
        if compressions[1] == "none":  # only the rest, and possibly a request that checks the tag
            assert asked in (["nar", "narinfo"], ["nar", "nar", "narinfo"])
            assert max(server.ranges(mark + "has"))[0] > size(compressions[0]) / 5
            assert sum(length for _, length in server.ranges(mark + "has")) < size("none") * 0.8
        else:
            assert asked == ["nar", "narinfo"]
        # The next request uses the other store first, and does not fail.
        assert ask(app) == "ok"
        assert "nar" in map(kind, server.asked(mark + "has"))
        assert sorted(map(kind, server.asked(mark + "cut"))) == ["ls", "nar", "narinfo"]


def size(compression: str) -> int:
    """Return the size of the file that contains the NAR."""
    return next(len(content) for name, content in files(compression).items() if name.startswith("nar/"))
