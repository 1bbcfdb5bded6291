"""Every exception that the project raises on purpose, in one tree.

::

    NarcoreError
    ├ FormatError (ValueError)     bytes or text that break a specification; ``where`` says at what offset, line or field
    │  ├ NarError  ├ NarInfoError  ├ CacheInfoError  ├ ListingError  ├ StorePathError  └ HashError
    ├ IntegrityError               well-formed, but not what was promised
    │  ├ HashMismatch  ├ SizeMismatch  └ UntrustedSignature
    ├ CompressionError
    │  ├ UnknownCompression  ├ TruncatedStream  └ CorruptStream
    ├ StoreError                   a binary cache store did not give what was asked for
    │  ├ FileNotInStore  ├ StoreForbidden  ├ RangeNotSupported
    │  └ StoreUnavailable
    │     ├ StoresUnavailable      several stores: some could not be asked, and the others don't have it
    │     └ StoreTimeout           └ StoresTimeout
    ├ PathError                    the store path is there, but what the path inside it names can't be served
    │  ├ NoSuchNode  ├ NotADirectory  ├ SymlinkLoop  ├ OutsideStore  └ InOtherStorePath
    ├ CapacityError                nothing is wrong, there is just no room or no turn for it now
    │  └ CacheFailure              it can't be cached: the disk is full, read-only, gone
    ├ MountError                   a file system can't be mounted, or nobody answers for a mount
    ├ NarTooLarge                  larger than this installation is set up to unpack
    └ SettingsError (ValueError)   a setting that can't be used

Messages are written for the person who reads them in a log. They never hold a password; what a client is told is decided by
``api/errors.py``.
"""


class NarcoreError(Exception):
    """The root of the tree: catch this to catch everything that is raised on purpose."""


class FormatError(NarcoreError, ValueError):
    """Input that breaks its specification.

    ``where`` names the place (``"offset 96"``, ``"line 3"``, ``"field NarHash"``) or is empty.
    """

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{message} ({where})" if where else message)
        self.where = where


class NarError(FormatError):
    """Not a NAR, or one that breaks a rule of the format."""


class NarInfoError(FormatError):
    """A narinfo that lacks a field, or holds one that can't be read, or is about another store path."""


class CacheInfoError(FormatError):
    """A nix-cache-info that can't be read."""


class ListingError(FormatError):
    """A NAR listing that can't be read, or does not fit its NAR."""


class StorePathError(FormatError):
    """Not a store path."""


class HashError(FormatError):
    """Not a hash in any of Nix's notations."""


class IntegrityError(NarcoreError):
    """Well-formed, but not what was promised."""


class HashMismatch(IntegrityError):
    """The bytes hash to something else than the narinfo says."""


class SizeMismatch(IntegrityError):
    """There are more or fewer bytes than the narinfo says."""


class UntrustedSignature(IntegrityError):
    """No signature of the narinfo is a good one by a trusted key."""


class CompressionError(NarcoreError):
    """A stream that can't be decompressed."""


class UnknownCompression(CompressionError):
    """A compression that is not known, or not supported; the message holds its name."""


class TruncatedStream(CompressionError):
    """The stream ends before its end."""


class CorruptStream(CompressionError):
    """The codec refuses the bytes."""


class StoreError(NarcoreError):
    """A binary cache store did not give what was asked for."""


class FileNotInStore(StoreError):
    """The store answered: it has no such file."""


class StoreForbidden(StoreError):
    """The file may not be asked for here: it would leave the store, or the store refuses the credentials."""


class RangeNotSupported(StoreError):
    """The store can't give a part of this file; ask for the whole."""


class StoreUnavailable(StoreError):
    """The store can't be reached, fails, or breaks off; trying later may help."""


class StoreTimeout(StoreUnavailable):
    """The store is too slow."""


class StoresUnavailable(StoreUnavailable):
    """Of several stores, some could not be asked, and the others have no such path."""


class StoresTimeout(StoreTimeout):
    """Of several stores, some were too slow, and the others have no such path."""


class PathError(NarcoreError):
    """The store path is there, but the path inside it leads nowhere that can be served."""


class NoSuchNode(PathError):
    """There is nothing at that path."""


class NotADirectory(PathError):
    """The path goes on behind a regular file."""


class SymlinkLoop(PathError):
    """Following the links does not come to an end."""


class OutsideStore(PathError):
    """A link leads out of the store."""


class InOtherStorePath(PathError):
    """A link leads into another store path; ``path`` is the absolute path there."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class CapacityError(NarcoreError):
    """No room or no turn now; ``retry_after`` is in seconds."""

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CacheFailure(CapacityError):
    """A NAR can't be cached: the disk is full or failing, the directory can't be written. Other sources may help."""


class MountError(NarcoreError):
    """A file system can't be mounted, or nobody answers for a mount; the message says what failed and the next step."""


class NarTooLarge(NarcoreError):
    """A NAR above the size that this installation is set up to unpack."""


class SettingsError(NarcoreError, ValueError):
    """A setting that can't be used; the message names it and says what would do."""
