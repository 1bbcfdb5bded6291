"""NARs that are too large for the settings are rejected with 413, without Retry-After."""

from pathlib import Path

import pytest

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.settings import Settings
from narcore.stores.memory import MemoryStore
from tests.builders import binary_cache, hash_part

FILES = binary_cache({"x-1.0": {"a": bytes(100_000)}})
URL = f"/nix/store/{hash_part('x-1.0')}/a"


@pytest.mark.parametrize(
    ("limit", "strict", "largest", "status"),
    [
        (10_000, True, None, 413),  # strict serves only from the cache
        (10_000, False, None, 200),
        (1 << 20, True, None, 200),
        (1 << 20, False, 50_000, 413),
        (1 << 20, True, 200_000, 200),
    ],
)
def test_too_large_nar_is_rejected(tmp_path: Path, limit: int, strict: bool, largest: int | None, status: int) -> None:
    nars = NarCache(tmp_path / "nars", size=lambda _directory: limit, max_fills=2)
    cache = BinaryCache([MemoryStore(FILES)], cache=nars, strict=strict, max_nar_size=largest)
    try:
        with create_app(Settings(), cache).test_client() as client:
            response = client.get(URL, buffered=True)
    finally:
        cache.close()
    assert response.status_code == status
    assert "Retry-After" not in response.headers
