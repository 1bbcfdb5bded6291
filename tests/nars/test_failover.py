"""A NAR whose store fails half-way comes on from another store, without a byte of it being asked for twice where that can be."""

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


@pytest.mark.parametrize("keeps", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("compressions", [("zstd", "zstd"), ("xz", "none"), ("none", "none"), ("none", "xz")])
def test_each_store_is_asked_once(
    server: Stores, tmp_path: Path, compressions: tuple[str, str], keeps: bool, request: pytest.FixtureRequest
) -> None:
    mark = request.node.callspec.id
    both = [
        Substituter(server.open(fault, compression, mark=mark + fault), priority=place)
        for place, (fault, compression) in enumerate(zip(("cut", "has"), compressions, strict=True))
    ]
    with ExitStack() as stack:
        nars = NarCache(tmp_path, size=lambda _directory: 1 << 30, max_fills=4) if keeps else None
        cache = BinaryCache(both, trusted_keys=[KEY.public_key], cache=nars)
        stack.callback(cache.close)
        app = create_app(Settings(), cache)
        assert ask(app) == "ok"
        assert sorted(map(kind, server.asked(mark + "cut"))) == ["ls", "nar", "narinfo"]
        asked = sorted(map(kind, server.asked(mark + "has")))
        if compressions[1] == "none":  # only the rest, and perhaps a look whether it is of the right file
            assert asked in (["nar", "narinfo"], ["nar", "nar", "narinfo"])
            assert max(server.ranges(mark + "has"))[0] > size(compressions[0]) / 5
            assert sum(length for _, length in server.ranges(mark + "has")) < size("none") * 0.8
        else:
            assert asked == ["nar", "narinfo"]
        # The path is asked of the other one now, and no error is in its way.
        assert ask(app) == "ok"
        assert "nar" in map(kind, server.asked(mark + "has"))
        assert sorted(map(kind, server.asked(mark + "cut"))) == ["ls", "nar", "narinfo"]


def size(compression: str) -> int:
    """Of the file that holds the NAR."""
    return next(len(content) for name, content in files(compression).items() if name.startswith("nar/"))
