"""A NAR of a few frames, and a tier in a directory that has it."""

import hashlib
import random
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from narcore.formats.listing import NarListing, Node
from narcore.formats.nar.parser import parse_nar
from narcore.formats.signature import SecretKey
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.sizes import CHUNK_SIZE
from narcore.stores.base import BinaryCacheStore, StoreFile
from narcore.stores.local import LocalBinaryCacheStore
from narcore.stores.localwriter import LocalWriter
from narcore.stores.memory import MemoryStore
from narcore.tier.writer import TierWriter
from tests import builders

STORE_KEY = SecretKey("store-1", hashlib.sha256(b"store").digest())
TIER_KEY = SecretKey("tier-1", hashlib.sha256(b"tier").digest())
OTHER_KEY = SecretKey("tier-1", hashlib.sha256(b"other").digest())
KEYS = (TIER_KEY.public_key,)

NAME = "big-1.0"
SMALL, BIG, Z = b"small", random.Random(1).randbytes(2_500_000), random.Random(2).randbytes(200_000)
LIB: Mapping[str, builders.Tree] = {
    "big": BIG,
    "link": builders.link("big"),
    "medium": bytes(300_000),
}
TREE: dict[str, builders.Tree] = {"a": SMALL, "lib": LIB, "z": Z}
NAR = builders.nar(TREE)
LISTING = NarListing.from_events(parse_nar([NAR], contents=False))
INFO = PathInfo(
    builders.nar_info(builders.store_path(NAME), NAR, secret_key=STORE_KEY), MemoryStore({}), Trust.SIGNATURE
)
DIGITS = INFO.narinfo.nar_hash.nix32
HASH_PART = INFO.narinfo.store_path.hash_part
NAR_FILE, INDEX_FILE, NARINFO_FILE = f"nar/{DIGITS}.nar.zst", f"nar/{DIGITS}.index", f"{HASH_PART}.narinfo"


def chunks(data: bytes = NAR, size: int = CHUNK_SIZE) -> Iterator[bytes]:
    """Yield ``data`` in chunks of ``size`` bytes."""
    return (data[start : start + size] for start in range(0, len(data), size))


def make_tier(root: Path) -> TierWriter:
    """Return the writer of a tier in a new directory, with the NAR."""
    writer = open_tier(root)
    assert writer.add(INFO, chunks)
    return writer


def open_tier(root: Path, key: SecretKey = TIER_KEY) -> TierWriter:
    return TierWriter(LocalWriter(root), LocalBinaryCacheStore(str(root)), key, ())


def node(path: str) -> Node:
    """Return the node at ``path`` in the NAR."""
    found = LISTING.root
    for name in path.split("/"):
        child = LISTING.child(found, name)
        assert child is not None
        found = child
    return found


class CountedStore:
    """Counts the requests to ``inner`` and the bytes that it sends."""

    def __init__(self, inner: BinaryCacheStore) -> None:
        self.url = inner.url
        self._inner = inner
        self.requests: list[str] = []
        self.bytes = 0

    def get_file(self, path: str, start: int = 0, stop: int | None = None) -> StoreFile:
        self.requests.append(path)
        file = self._inner.get_file(path, start, stop)
        return StoreFile(self._count(file), size=file.size)

    def _count(self, file: StoreFile) -> Generator[bytes]:
        with file:
            for chunk in file:
                self.bytes += len(chunk)
                yield chunk

    def check(self) -> None:
        self._inner.check()

    def close(self) -> None:
        self._inner.close()
