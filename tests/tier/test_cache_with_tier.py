"""A BinaryCache with a tier: reads verified parts from it, falls back to the stores, and adds what it fetched."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError
from narcore.nars.accessor import NarBytes
from narcore.settings import Settings
from narcore.stores.memory import MemoryStore
from narcore.tier.reader import MISSING_SECONDS, TierReader
from tests import builders
from tests.tier.tiers import (
    BIG,
    HASH_PART,
    INDEX_FILE,
    NAME,
    NAR_FILE,
    NARINFO_FILE,
    OTHER_KEY,
    SMALL,
    STORE_KEY,
    TIER_KEY,
    TREE,
    Z,
    make_tier,
)

PLACE = 1_500_000  # in lib/big, and in its second frame


@dataclass(frozen=True)
class Site:
    """The directories of a store, of a tier and of a disk cache, and the settings of an instance that uses them."""

    root: Path

    @property
    def tier(self) -> Path:
        return self.root / "tier"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def environ(self, **changes: str) -> dict[str, str]:
        return {
            "NAR_CACHE_URL": self.store.as_uri(),
            "NAR_TRUSTED_PUBLIC_KEYS": str(STORE_KEY.public_key),
            "NAR_CACHE_DIR": str(self.root / "cache"),
            "NAR_TIER_URL": self.tier.as_uri(),
            "NAR_TIER_PUBLIC_KEYS": str(TIER_KEY.public_key),
        } | changes

    def open(self, **changes: str) -> BinaryCache:
        return BinaryCache.from_settings(Settings.from_environ(self.environ(**changes)))

    def lose_nars(self) -> None:
        """Remove the NARs from the store, so that only the tier has them."""
        for path in (self.store / "nar").iterdir():
            path.unlink()


MODES = {"disk": {}, "off": {"NAR_CACHE_DIR": "off"}, "strict": {"NAR_VERIFY": "strict"}}
mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    for name, data in builders.binary_cache({NAME: TREE}, secret_key=STORE_KEY, listings=False).items():
        (made.store / name).parent.mkdir(parents=True, exist_ok=True)
        (made.store / name).write_bytes(data)
    return made


def read(cache: BinaryCache, path: str, start: int, stop: int) -> tuple[bytes, bool]:
    """Return bytes of a file, and whether they were said to be verified."""
    found = cache.open(cache.path_info(HASH_PART)).read(path, start, stop)
    try:
        return b"".join(found), found.is_verified
    finally:
        found.close()


@mode
def test_a_part_comes_verified_from_the_tier_alone(site: Site, mode: dict[str, str]) -> None:
    make_tier(site.tier)
    site.lose_nars()
    with site.open(**mode) as cache:
        for path, content in (("lib/big", BIG), ("a", SMALL), ("z", Z)):
            assert read(cache, path, 3, len(content)) == (content[3:], True)
    assert not list(site.root.glob("cache/*.nar"))


@mode
@pytest.mark.parametrize("name", [INDEX_FILE, NAR_FILE])
@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated"])
def test_a_damaged_tier_falls_back_to_the_stores(site: Site, mode: dict[str, str], name: str, damage: str) -> None:
    make_tier(site.tier)
    path, data = site.tier / name, (site.tier / name).read_bytes()
    path.unlink()
    if damage != "missing":
        middle = len(data) // 2
        path.write_bytes(
            data[:middle] + (b"" if damage == "truncated" else bytes([data[middle] ^ 1]) + data[middle + 1 :])
        )
    with site.open(**mode) as cache:
        assert read(cache, "lib/big", 0, len(BIG))[0] == BIG
        assert read(cache, "a", 0, 5)[0] == SMALL


@mode
def test_the_rest_after_a_damaged_frame_is_verified_and_comes_from_a_store(site: Site, mode: dict[str, str]) -> None:
    """The header said that the bytes are verified: if the store has another NAR, the answer is cut."""
    make_tier(site.tier)
    data = (site.tier / NAR_FILE).read_bytes()
    late = len(data) - 250_000  # in the last frame of lib/big
    (site.tier / NAR_FILE).write_bytes(data[:late] + bytes([data[late] ^ 1]) + data[late + 1 :])
    with site.open(**mode) as cache:
        assert read(cache, "lib/big", 0, len(BIG)) == (BIG, True)
    wrong = builders.nar({**TREE, "z": bytes(200_000)})
    for path in (site.store / "nar").iterdir():
        path.write_bytes(builders.COMPRESS["zstd"](wrong))
    for path in site.root.glob("cache/*.nar"):
        path.unlink()
    with site.open(**mode) as cache:
        found = cache.open(cache.path_info(HASH_PART)).read("lib/big")
        got = bytearray()
        with pytest.raises(NarcoreError):
            receive(found, got)
        assert BIG.startswith(got)
        assert len(got) < len(BIG)
        found.close()


def receive(found: NarBytes, got: bytearray) -> None:
    for chunk in found:
        got += chunk


@pytest.mark.parametrize("keys", [str(OTHER_KEY.public_key), f"{OTHER_KEY.public_key} {TIER_KEY.public_key}"])
@pytest.mark.parametrize("trusted", [True, False])
def test_an_answer_from_the_tier_needs_a_trusted_narinfo_and_a_key_of_the_tier(
    site: Site, keys: str, trusted: bool
) -> None:
    make_tier(site.tier)
    store = str((STORE_KEY if trusted else OTHER_KEY).public_key)
    url = site.store.as_uri() + ("" if trusted else "?trusted=1")
    settings = Settings.from_environ(
        site.environ(NAR_TIER_PUBLIC_KEYS=keys, NAR_TRUSTED_PUBLIC_KEYS=store, NAR_CACHE_URL=url, NAR_CACHE_DIR="off")
    )
    site.lose_nars()
    client = create_app(settings).test_client()
    response = client.get(f"/nix/store/{HASH_PART}-{NAME}/lib/big", headers={"Range": f"bytes={PLACE}-{PLACE + 99}"})
    if trusted and str(TIER_KEY.public_key) in keys:
        assert (response.status_code, response.data) == (206, BIG[PLACE : PLACE + 100])
        assert response.headers["NAR-Verified"] == "signature, content"
        assert "immutable" in response.headers["Cache-Control"]
    else:
        assert response.status_code == 502
        assert "NAR-Verified" not in response.headers
    response.close()


def test_a_fetched_nar_is_added_and_read_by_an_empty_instance(site: Site) -> None:
    secret = {"NAR_TIER_SECRET_KEY": TIER_KEY.to_text(), "NAR_TIER_WRITE": "on"}
    with site.open(**secret) as cache:
        assert read(cache, "lib/big", 0, 10)[0] == BIG[:10]
        deadline = time.monotonic() + 30
        while not (site.tier / NARINFO_FILE).exists():
            cache.open_fetched(cache.path_info(HASH_PART)).close()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    site.lose_nars()
    with site.open(NAR_CACHE_DIR=str(site.root / "empty")) as cache:
        assert read(cache, "lib/big", PLACE, PLACE + 9) == (BIG[PLACE : PLACE + 9], True)


def test_without_write_nothing_is_added(site: Site) -> None:
    with site.open(NAR_TIER_SECRET_KEY=TIER_KEY.to_text()) as cache:
        cache.open_fetched(cache.path_info(HASH_PART)).close()
    assert not site.tier.exists()


def test_a_listing_of_the_store_is_replaced_when_the_tier_gets_the_nar(site: Site) -> None:
    (site.store / f"{HASH_PART}.ls").write_bytes(builders.listing_json(TREE))
    clock = [0.0]
    tier = TierReader(MemoryStore({}), [TIER_KEY.public_key], clock=lambda: clock[0])
    files = {str(path.relative_to(site.store)): path.read_bytes() for path in site.store.rglob("*") if path.is_file()}
    cache = BinaryCache([MemoryStore(files)], trusted_keys=[STORE_KEY.public_key], tier=tier)
    info = cache.path_info(HASH_PART)
    assert not cache.open(info).is_verified
    make_tier(site.tier)
    tier.store = MemoryStore({name: (site.tier / name).read_bytes() for name in (INDEX_FILE, NAR_FILE)})
    assert not cache.open(info).is_verified
    clock[0] += MISSING_SECONDS
    assert cache.open(info).is_verified
    assert read(cache, "lib/big", PLACE, PLACE + 9) == (BIG[PLACE : PLACE + 9], True)
    cache.close()
