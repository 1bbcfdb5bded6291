"""``TierWriter``: adds NARs to the tier."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Self

from narcore.concurrency.closing import close
from narcore.errors import FileNotInStore, FormatError, IntegrityError
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import PublicKey, SecretKey
from narcore.lookup.pathinfo import PathInfo
from narcore.stores import open_store, open_writer
from narcore.stores.base import BinaryCacheStore
from narcore.stores.writer import StoreWriter
from narcore.streams.integrity import verified
from narcore.tier.index import TierIndex, make_index
from narcore.tier.layout import CACHE_INFO, index_name, nar_name, narinfo_name
from narcore.tier.reader import read_index
from narcore.tier.seekable import SeekableNar

OpenNar = Callable[[], Iterator[bytes]]

_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
_NAR = {"Content-Type": "application/zstd", **_FOREVER}
_INDEX = {"Content-Type": "application/octet-stream", **_FOREVER}
_NARINFO = {"Content-Type": "text/x-nix-narinfo"}


class TierWriter:
    """Adds NARs to the tier. Thread-safe, and safe to use from several processes.

    The objects of a path are written in this order: NAR, index, narinfo. So if a reader finds the index, the NAR exists, and if it
    finds the narinfo, both exist.
    """

    def __init__(self, writer: StoreWriter, store: BinaryCacheStore, key: SecretKey, keys: Sequence[PublicKey]) -> None:
        """``store`` reads the objects that ``writer`` writes. Signs indexes with ``key``; accepts ``keys``, too."""
        self.writer = writer
        self._store = store
        self._key = key
        self._keys = (key.public_key, *keys)

    @classmethod
    def open(cls, url: str, key: SecretKey, keys: Sequence[PublicKey]) -> Self:
        """Open the tier at a store URL, without connecting to it. Raises SettingsError if it can't be written to."""
        return cls(open_writer(url), open_store(url), key, keys)

    def close(self) -> None:
        self.writer.close()
        self._store.close()

    def has(self, info: PathInfo) -> bool:
        """Return whether the tier has the path. Raises WriteError."""
        return self.writer.has(narinfo_name(info.narinfo.store_path.hash_part))

    def add(self, info: PathInfo, open_nar: OpenNar, *, force: bool = False) -> bool:
        """Add a path. Returns False if the tier already has the path, or if another process is adding the same NAR.

        ``open_nar`` opens the NAR, which is verified during the upload. It is not called if the tier has the same NAR, for another
        path. With ``force``, all objects are written again. Raises ValueError if the narinfo was not verified, WriteError,
        StoreError, ListingError if the NAR has too many entries, and the errors of reading the NAR.
        """
        if not info.trust.is_verified:
            raise ValueError("readers of the tier would not use a path without a trusted signature")
        if self.has(info) and not force:
            return False
        digits = info.narinfo.nar_hash.nix32
        if not self.writer.claim(digits):
            return False
        try:
            # The index is read after the claim, because another process may have added the NAR just before the claim.
            index = (None if force else self._index(digits)) or self._add_nar(info.narinfo, open_nar)
            self._add_narinfo(info.narinfo, index)
        finally:
            self.writer.release(digits)
        return True

    def _index(self, digits: str) -> TierIndex | None:
        """Return the index of the NAR if the tier has a valid one; None if the NAR has to be added."""
        if not self.writer.has(index_name(digits)):
            return None
        try:
            return read_index(self._store, digits, self._keys)
        except (FileNotInStore, FormatError, IntegrityError):
            return None

    def _add_nar(self, narinfo: NarInfo, open_nar: OpenNar) -> TierIndex:
        digits = narinfo.nar_hash.nix32
        chunks = verified(open_nar(), nar_hash=narinfo.nar_hash, nar_size=narinfo.nar_size)
        upload = _Upload(SeekableNar(chunks), narinfo.nar_hash, self._key)
        try:
            self.writer.put(nar_name(digits), upload, _NAR)
        finally:
            close(chunks)
        self.writer.put(index_name(digits), [upload.index], _INDEX)
        return TierIndex.parse(upload.index, self._keys)

    def _add_narinfo(self, narinfo: NarInfo, index: TierIndex) -> None:
        if not self.writer.has(CACHE_INFO):
            text = f"StoreDir: {narinfo.store_path.store_dir}\nWantMassQuery: 1\n"
            self.writer.put(CACHE_INFO, [text.encode()], {"Content-Type": "text/x-nix-cache-info"})
        ours = replace(
            narinfo,
            url=nar_name(narinfo.nar_hash.nix32),
            compression="zstd",
            file_hash=index.file_hash,
            file_size=index.file_size,
        )
        self.writer.put(narinfo_name(narinfo.store_path.hash_part), [ours.to_text().encode()], _NARINFO)


class _Upload:
    """The bytes of a seekable file. After the last byte, ``index`` is the index object.

    The last bytes are returned only after the index was made. If the index is too large, an error is raised, and the NAR is not
    stored.
    """

    def __init__(self, nar: SeekableNar, nar_hash: NixHash, key: SecretKey) -> None:
        self._nar = nar
        self._nar_hash = nar_hash
        self._key = key
        self.index = b""

    def __iter__(self) -> Iterator[bytes]:
        previous = b""
        for chunk in self._nar:
            if previous:
                yield previous
            previous = chunk
        self.index = make_index(self._nar, nar_hash=self._nar_hash, key=self._key)
        yield previous
