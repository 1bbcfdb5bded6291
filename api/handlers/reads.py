"""The reads of one response: which bytes of the NAR it uses, and whether they are verified."""

from contextlib import closing
from functools import partial

from api.responses.body import Read
from narcore.errors import IntegrityError, NarcoreError
from narcore.formats.listing import Node
from narcore.nars.accessor import NarAccessor, NarBytes


class Reads:
    """Reads files for one response through ``accessor``, and records whether every read so far is verified."""

    def __init__(self, accessor: NarAccessor) -> None:
        self.accessor = accessor.watched(self._record)
        self._needs_bytes = False
        self._any = False
        self._all_verified = True
        self._sealed = False

    def of(self, node: Node) -> Read:
        """Return the function that reads the file ``node``, whose bytes determine the response."""
        self._needs_bytes = self._needs_bytes or node.size > 0
        return partial(self.accessor.read, node)

    def of_subtree(self) -> NarAccessor:
        """Return an accessor for a response that consists of a whole subtree."""
        self._needs_bytes = True
        return self.accessor

    def whole(self, node: Node) -> bytes:
        """Return all bytes of a small file that the response shows if possible, such as a README.

        Raises the errors of reading. The response is then unverified, because a wrong listing may have caused the error.
        """
        try:
            with closing(self.accessor.read(node)) as content:
                return b"".join(content)
        except NarcoreError:
            self._any, self._all_verified = True, False
            raise

    def seal(self) -> bool:
        """Return whether the response rests on verified data. If so, later reads that are not verified raise IntegrityError.

        A verified read includes a check of the listing. If nothing was read (a HEAD, a 304, a redirect), the listing must be
        verified. If the response depends on the bytes of a file, the verified NAR must also be cached.
        """
        if self._any:
            verified = self._all_verified
        else:
            verified = self.accessor.is_verified and (not self._needs_bytes or self.accessor.is_cached)
        self._sealed = verified
        return verified

    def _record(self, opened: NarBytes) -> None:
        if self._sealed and not opened.is_verified:
            raise IntegrityError("the rest of a response can't be verified, because the NAR is not cached any more")
        self._any = True
        self._all_verified = self._all_verified and opened.is_verified
