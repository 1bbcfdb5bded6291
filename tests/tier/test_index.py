"""The index object: signed as a whole, rejected if one bit differs, and searched without being parsed."""

import random
import time

import pytest

from narcore.errors import FormatError, IntegrityError, ListingError, NarcoreError, UntrustedSignature
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import PublicKey
from narcore.tier import index as index_module
from narcore.tier.index import INDEX_LIMIT, TierIndex, make_index
from narcore.tier.seekable import SeekableNar
from tests import builders
from tests.tier.tiers import INFO, KEYS, LISTING, NAR, OTHER_KEY, TIER_KEY, chunks


def index_of(nar: bytes) -> bytes:
    packed = SeekableNar(chunks(nar))
    assert list(packed)
    return make_index(packed, nar_hash=INFO.narinfo.nar_hash, key=TIER_KEY)


DATA = index_of(NAR)


def test_an_index_is_read_as_it_was_written() -> None:
    packed = SeekableNar(chunks())
    size = sum(map(len, packed))
    index = TierIndex.parse(DATA, KEYS)
    assert (index.nar_hash, index.nar_size, index.file_size) == (INFO.narinfo.nar_hash, len(NAR), size)
    assert index.file_hash == NixHash("sha256", packed.file_digest)
    assert index.listing == LISTING
    assert (tuple(index.frames.packed), tuple(index.frames.unpacked)) == (packed.table.packed, packed.table.unpacked)
    assert [index.digest(number) for number in range(len(index.frames))] == packed.digests
    assert index.key_name == "tier-1"


@pytest.mark.parametrize("keys", [(), (OTHER_KEY.public_key,), (PublicKey("tier-2", TIER_KEY.public_key.key),)])
def test_an_index_of_another_key_is_rejected(keys: tuple[PublicKey, ...]) -> None:
    with pytest.raises(UntrustedSignature, match="tier-1"):
        TierIndex.parse(DATA, keys)
    assert TierIndex.parse(DATA, (*keys, TIER_KEY.public_key)).key_name == "tier-1"


def test_any_other_byte_makes_an_index_invalid() -> None:
    for place in range(len(DATA)):
        changed = bytearray(DATA)
        changed[place] ^= 1 << random.Random(place).randrange(8)
        with pytest.raises((FormatError, IntegrityError)):
            TierIndex.parse(bytes(changed), KEYS)


def test_a_truncated_or_extended_index_is_invalid() -> None:
    for data in (*(DATA[:size] for size in range(len(DATA))), DATA + b"x", DATA + bytes(INDEX_LIMIT)):
        with pytest.raises(NarcoreError):
            TierIndex.parse(data, KEYS)


def test_the_signature_of_an_index_is_not_one_of_a_narinfo() -> None:
    signature = DATA[DATA.rindex(b"tier-1:") :]
    body = DATA[: -len(signature)]
    assert str(TIER_KEY.sign(body)).encode() != signature


def test_an_index_has_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "INDEX_LIMIT", 200)
    with pytest.raises(ListingError, match="7 entries"):
        index_of(NAR)


def test_a_lookup_does_not_depend_on_the_number_of_entries() -> None:
    tree: builders.Tree = {f"d{first:03}": {f"f{second:03}": b"" for second in range(200)} for first in range(200)}
    data = index_of(builders.nar(tree))
    started = time.perf_counter()
    listing = TierIndex.parse(data, KEYS).listing
    directory = listing.child(listing.root, "d123")
    assert directory is not None
    assert listing.child(directory, "f077") is not None
    assert time.perf_counter() - started < 0.05  # parsing this listing as JSON takes 0.2 s; hashing 1.7 MB takes 3 ms
