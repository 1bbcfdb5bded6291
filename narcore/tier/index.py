"""The index of a NAR in the tier: its listing, the positions and digests of its frames, and a signature over all of it.

::

    header      magic number, NarHash, NarSize, hash and size of the seekable file, number of frames, size of the listing
    positions   the start of each frame in the file and the end of the last, 8 bytes each; then the same for the NAR
    digests     SHA-256 of each packed frame
    listing     in its packed form (NarListing.to_packed)
    signature   ``name:base64``, as in a narinfo; Ed25519 over `_message`

All numbers are little-endian. A reader checks the signature once. Then it searches the listing and the positions without decoding
them, so the cost of a lookup hardly depends on the number of entries.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

from narcore.errors import FormatError, ListingError, UntrustedSignature
from narcore.formats.listing import NarListing
from narcore.formats.nixhash import NixHash
from narcore.formats.signature import PublicKey, SecretKey, Signature
from narcore.tier.seekable import SeekableNar, SeekTable

INDEX_LIMIT = 16 << 20
"""The largest index, in bytes. It is enough for about 400,000 entries or a NAR of 300 GiB. A reader holds it in memory."""

_MAGIC = b"nartier1"
_HEADER = struct.Struct("<8s32sQ32sQIQ")
_SIGNATURE_MAX = 512
_WHERE = "index of a NAR in the tier"


@dataclass(frozen=True, slots=True)
class TierIndex:
    """The contents of an index whose signature was checked.

    ``digests`` are the SHA-256 digests of the packed frames, 32 bytes each. ``key_name`` is the name of the key that signed the
    index. ``nbytes`` is the size of the index.
    """

    nar_hash: NixHash
    nar_size: int
    file_hash: NixHash
    file_size: int
    frames: SeekTable
    digests: bytes | memoryview
    listing: NarListing
    key_name: str
    nbytes: int

    @classmethod
    def parse(cls, data: bytes, keys: Iterable[PublicKey]) -> Self:
        """Read an index object.

        Raises UntrustedSignature if none of ``keys`` signed exactly these bytes, and FormatError if it is not an index.
        """
        if len(data) > INDEX_LIMIT:
            raise FormatError(f"{len(data)} bytes, more than the {INDEX_LIMIT} allowed", where=_WHERE)
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise FormatError("not an index of this version", where=_WHERE)
        _, digest, nar_size, file_digest, file_size, count, listing_size = _HEADER.unpack_from(data)
        positions = 8 * (count + 1)
        sections = (positions, positions, 32 * count, listing_size)
        ends = tuple(accumulate(sections, initial=_HEADER.size))
        if not 0 < len(data) - ends[-1] <= _SIGNATURE_MAX:
            raise FormatError(f"{len(data)} bytes do not fit the counts in the header", where=_WHERE)
        view = memoryview(data).toreadonly()
        key_name = _check_signature(view[: ends[-1]], bytes(view[ends[-1] :]), keys)
        packed, unpacked, digests, listing = (view[start:end] for start, end in pairwise(ends))
        return cls(
            NixHash("sha256", digest),
            nar_size,
            NixHash("sha256", file_digest),
            file_size,
            SeekTable(packed.cast("Q"), unpacked.cast("Q")),
            digests,
            NarListing.from_packed(listing, nar_size=nar_size),
            key_name,
            len(data),
        )

    def digest(self, frame: int) -> bytes:
        """Return the SHA-256 digest of a packed frame."""
        return bytes(self.digests[32 * frame : 32 * frame + 32])


def make_index(nar: SeekableNar, *, nar_hash: NixHash, key: SecretKey) -> bytes:
    """Return the index object of a NAR that was verified and completely packed.

    Raises ListingError if the NAR has so many entries that the index exceeds INDEX_LIMIT.
    """
    listing, table = nar.listing, nar.table
    packed_listing = listing.to_packed()
    header = _HEADER.pack(
        _MAGIC,
        nar_hash.digest,
        listing.nar_size,
        nar.file_digest,
        nar.file_size,
        len(table),
        len(packed_listing),
    )
    positions = struct.pack(f"<{2 * len(table) + 2}Q", *table.packed, *table.unpacked)
    body = b"".join((header, positions, *nar.digests, packed_listing))
    data = body + str(key.sign(_message(body))).encode()
    if len(data) > INDEX_LIMIT:
        raise ListingError(
            f"the index of the NAR in the tier would have {len(data)} bytes, more than the {INDEX_LIMIT} allowed; "
            f"the NAR has {len(listing)} entries"
        )
    return data


def _message(body: bytes | memoryview) -> bytes:
    """Return the bytes that the key signs. Because of the prefix, the signature is not valid for other data, such as a narinfo."""
    return b"nar-serve;index of a NAR in the tier;1;sha256:" + hashlib.sha256(body).hexdigest().encode()


def _check_signature(body: memoryview, signature: bytes, keys: Iterable[PublicKey]) -> str:
    try:
        parsed = Signature.parse(signature.decode())
    except ValueError as error:  # FormatError is a subclass of ValueError
        raise FormatError("no signature", where=_WHERE) from error
    if str(parsed).encode() != signature:  # several base64 texts decode to the same bytes
        raise FormatError("the base64 of the signature is not in the standard form", where=_WHERE)
    message = _message(body)
    if not any(key.verify(message, parsed) for key in keys):
        raise UntrustedSignature(f"no key of NAR_TIER_PUBLIC_KEYS has signed the {_WHERE} (key name: {parsed.name!r})")
    return parsed.name
