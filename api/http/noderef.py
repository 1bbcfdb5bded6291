"""A reference to a node of a NAR: the value that a response is about, and the source of its validators (ETag, date)."""

from dataclasses import dataclass

from api.http.conditional import STORE_DATE, Validators, make_etag


@dataclass(frozen=True, slots=True)
class NodeRef:
    """The node of a NAR that a response is about. The ETag, the file name and the title of the response derive from it.

    ``path`` is relative to the store path, without slashes at its ends; "" is the root. ``store_path`` is the full
    path. ``used`` is what the response uses from the listing: the fingerprint of the node (see ``NarListing.fingerprint``).
    """

    nar_hash: str  # nix32 digits
    store_path: str
    path: str = ""
    used: str = ""

    @property
    def name(self) -> str:
        return (self.path or self.store_path).rpartition("/")[2]

    @property
    def store_dir(self) -> str:
        return self.store_path.rpartition("/")[0]

    def validators(self, representation: str = "") -> Validators:
        """Return the validators of the file's bytes (""), or of another ``representation`` of the node."""
        return Validators(make_etag(self.nar_hash, self.path, representation, self.used), STORE_DATE)
