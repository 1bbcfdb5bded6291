"""Records: a PathInfo as text, for another process."""

import pytest

from narcore.binarycache import BinaryCache
from narcore.formats.signature import SecretKey
from narcore.lookup.pathinfo import Trust
from narcore.stores.memory import MemoryStore
from tests.builders import binary_cache, hash_part

FILES = binary_cache({"tool-1": {"a": b"1"}})


def test_record_is_read_without_requests_to_the_store() -> None:
    before = BinaryCache([MemoryStore(FILES)])
    info = before.path_info(hash_part("tool-1"))
    record = before.to_record(info)
    assert record.isascii()
    assert "\n" not in record
    after = BinaryCache([MemoryStore({})])
    known = after.from_record(record)
    assert known is not None
    assert (known.narinfo, known.trust) == (info.narinfo, Trust.UNCHECKED)
    assert known.store is after.substituters[0].store
    assert after.to_record(known) == record


@pytest.mark.parametrize("store_dir", ["/nix/store", "/gnu/store"])
def test_record_contains_the_trust(store_dir: str) -> None:
    key = SecretKey.generate("k-1")
    files = binary_cache({"tool-1": {"a": b"1"}}, secret_key=key, store_dir=store_dir)
    nix_cache = BinaryCache([MemoryStore(files)], trusted_keys=[key.public_key])
    info = nix_cache.path_info(hash_part("tool-1"), store_dir)
    assert info.trust is Trust.SIGNATURE
    assert nix_cache.from_record(nix_cache.to_record(info)) == info


def test_record_of_a_store_that_is_not_configured_any_more_is_ignored() -> None:
    nix_cache = BinaryCache([MemoryStore(FILES)])
    record = nix_cache.to_record(nix_cache.path_info(hash_part("tool-1")))
    assert BinaryCache([]).from_record(record) is None
