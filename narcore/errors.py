"""The exceptions of the project, in one tree. ``api/errors.py`` maps them to HTTP statuses, ``narserve/terminal/exits.py``
maps them to exit codes.

::

    NarcoreError
    ├ FormatError (ValueError)     bytes or text that break a specification; ``where`` names the offset, line or field
    │  ├ NarError  ├ NarInfoError  ├ CacheInfoError  ├ ListingError  ├ StorePathError  └ HashError
    ├ IntegrityError               well-formed bytes that do not match the narinfo
    │  ├ HashMismatch  ├ SizeMismatch  └ UntrustedSignature
    ├ CompressionError
    │  ├ UnknownCompression  ├ TruncatedStream  └ CorruptStream
    ├ StoreError                   a binary cache store did not return the requested file
    │  ├ FileNotInStore  ├ StoreForbidden  ├ RangeNotSupported  ├ WriteError
    │  └ StoreUnavailable
    │     ├ StoresUnavailable      some of several stores could not be asked; the others don't have the path
    │     ├ StoreUnresponsive      the limit of requests that wait for a store is reached: try later
    │     └ StoreTimeout           └ StoresTimeout
    ├ PathError                    the store path exists, but the path inside it can't be served
    │  ├ NoSuchNode  ├ NotADirectory  ├ SymlinkLoop  ├ OutsideStore  └ InOtherStorePath
    ├ CapacityError                a limit is reached at the moment: try again later
    │  └ CacheFailure              a NAR can't be cached: the disk is full, read-only or missing
    ├ MountError                   a file system can't be mounted, or no process answers for a mount
    ├ NarTooLarge                  the NAR is larger than a limit of this installation
    └ SettingsError (ValueError)   an invalid setting

Messages are written for the log and never contain a password. ``api/errors.py`` decides which messages clients get.
"""


class NarcoreError(Exception):
    """Base class of all exceptions that the project raises on purpose."""


class FormatError(NarcoreError, ValueError):
    """Input that breaks its specification.

    ``where`` names the place (``"offset 96"``, ``"line 3"``, ``"field NarHash"``) or is empty.
    """

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{message} ({where})" if where else message)
        self.where = where


class NarError(FormatError):
    """The data is not a NAR, or breaks a rule of the format."""


class NarInfoError(FormatError):
    """A narinfo that lacks a field, has an invalid field, or does not describe the requested store path."""


class CacheInfoError(FormatError):
    """An invalid nix-cache-info file."""


class ListingError(FormatError):
    """A NAR listing that is invalid or does not match its NAR."""


class StorePathError(FormatError):
    """The text is not a store path."""


class HashError(FormatError):
    """The text is not a hash in any of Nix's notations."""


class IntegrityError(NarcoreError):
    """Well-formed data that is not what the narinfo or the content address describes."""


class HashMismatch(IntegrityError):
    """The bytes do not have the expected hash."""


class SizeMismatch(IntegrityError):
    """There are more or fewer bytes than expected."""


class UntrustedSignature(IntegrityError):
    """The narinfo has no valid signature by a trusted key."""


class CompressionError(NarcoreError):
    """A stream that can't be decompressed."""


class UnknownCompression(CompressionError):
    """An unknown or unsupported compression; the message contains its name."""


class TruncatedStream(CompressionError):
    """The compressed stream ends too early."""


class CorruptStream(CompressionError):
    """The compressed stream contains invalid data."""


class StoreError(NarcoreError):
    """A binary cache store did not return the requested file."""


class FileNotInStore(StoreError):
    """The store answered that it does not have the file."""


class StoreForbidden(StoreError):
    """The store refuses the credentials, or the file name leads out of the store."""


class RangeNotSupported(StoreError):
    """The store can't return a part of this file; request the whole file instead."""


class WriteError(StoreError):
    """A file can't be written to a store, or the store did not say whether it has the file."""


class StoreUnavailable(StoreError):
    """The store can't be reached, fails, or breaks off its response; trying later may help.

    ``is_unreachable``: no connection to the store was possible, so the error does not depend on the requested file.
    """

    def __init__(self, message: str, *, is_unreachable: bool = False) -> None:
        super().__init__(message)
        self.is_unreachable = is_unreachable


class StoreTimeout(StoreUnavailable):
    """The store timed out."""


class StoreUnresponsive(StoreUnavailable):
    """The store sends nothing, and the limit of requests that wait for it is reached; try again after ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoresUnavailable(StoreUnavailable):
    """Some of several stores could not be asked, and the others don't have the path."""


class StoresTimeout(StoreTimeout):
    """Some of several stores timed out, and the others don't have the path."""


class PathError(NarcoreError):
    """The store path exists, but the path inside it can't be served.

    ``is_verified``: the error follows from the listing of the verified NAR, and not only from a listing that a store sent.
    """

    is_verified = False


class NoSuchNode(PathError):
    """Nothing exists at the path."""


class NotADirectory(PathError):
    """A regular file occurs in the path where a directory is needed."""


class SymlinkLoop(PathError):
    """Following the symbolic links does not end."""


class OutsideStore(PathError):
    """A symbolic link leads out of the store."""


class InOtherStorePath(PathError):
    """A link leads into another store path; ``path`` is the absolute path there."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class CapacityError(NarcoreError):
    """A limit is reached at the moment; try again after ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CacheFailure(CapacityError):
    """A NAR can't be cached: the disk is full or failing, or the directory is not writable. Reading without the cache may work."""


class MountError(NarcoreError):
    """A file system can't be mounted, or no process answers for a mount; the message names the failure and the next step."""


class NarTooLarge(NarcoreError):
    """The NAR is larger than a limit of this installation."""


class SettingsError(NarcoreError, ValueError):
    """An invalid setting; the message names the setting and says what is wrong or which values are valid."""


def how_to_install(extra: str) -> str:
    """Return advice for a missing package: how to install the ``extra`` (an optional group of dependencies) that has it.

    The project has no release on PyPI, so the advice is to install from a checkout. Change it here after a release.
    """
    return f"in a checkout of nar-serve, run: pip install '.[{extra}]'"
