import sys
from collections.abc import Iterator

import pytest

from narcore.streams.decoders import gzip_codec


@pytest.fixture(params=["isal", "zlib"])
def gzip_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test with isal, and as if isal was not installed."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    gzip_codec.cache_clear()
    yield request.param
    gzip_codec.cache_clear()
