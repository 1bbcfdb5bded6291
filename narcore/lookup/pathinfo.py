"""What is known of a store path, and which store said so."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from narcore.cache.layout import NarKey
from narcore.errors import NarcoreError
from narcore.formats import narinfo_json
from narcore.formats.narinfo import NarInfo
from narcore.stores.base import BinaryCacheStore


class Trust(enum.StrEnum):
    """Why a narinfo is trusted."""

    UNCHECKED = ""  # no keys are configured
    STORE = "store"  # its store is trusted as it is
    SIGNATURE = "signature"  # by a trusted key
    ADDRESS = "address"  # the store path itself says what is in it

    @property
    def is_verified(self) -> bool:
        """Whether the narinfo itself was verified, not only the store trusted."""
        return self in (Trust.SIGNATURE, Trust.ADDRESS)

    @property
    def explanation(self) -> "TrustExplanation":
        """The same in words."""
        return _EXPLANATIONS[self]


class TrustExplanation(NamedTuple):
    """What people read about a Trust. ``sentence``: on a page; ``answer``: to "is it trusted?"; ``check``: what was checked."""

    sentence: str
    answer: str
    check: str


_EXPLANATIONS = {
    Trust.UNCHECKED: TrustExplanation(
        "Not checked: this server has no trusted keys.",
        "not checked: no keys are configured",
        "no signature checked (NAR_TRUSTED_PUBLIC_KEYS is not set)",
    ),
    Trust.STORE: TrustExplanation(
        "Not checked: this server trusts the store as it is.",
        "yes: its store is trusted as it is",
        "no signature checked (its store is trusted)",
    ),
    Trust.SIGNATURE: TrustExplanation(
        "Verified: signed by a key that this server trusts.",
        "yes: signed by a trusted key",
        "signature good",
    ),
    Trust.ADDRESS: TrustExplanation(
        "Verified: the store path itself is the address of its contents.",
        "yes: the store path itself says what is in it",
        "content address good",
    ),
}


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A narinfo and the store that it is from: the NAR comes from the same one."""

    narinfo: NarInfo
    store: BinaryCacheStore
    trust: Trust = Trust.UNCHECKED

    @property
    def nar_key(self) -> NarKey:
        """Identifies the NAR in the disk cache."""
        return NarKey(self.narinfo.nar_hash.nix32, self.narinfo.nar_size)

    def to_json(self) -> dict[str, object]:
        """The fields of nix path-info --json (see narinfo_json), and three that say whom to believe.

        ``store`` is where it is from. ``trusted`` is true, or null where there are no keys to tell by; what it is trusted for is
        ``trustedFor``: a Trust, left out where there is none.
        """
        trusted: dict[str, object] = {"trusted": None}
        if self.trust is not Trust.UNCHECKED:
            trusted = {"trusted": True, "trustedFor": self.trust.value}
        return narinfo_json.to_json(self.narinfo) | {"store": self.store.url} | trusted


# Is told that the NAR of a store path could not be fetched from its store, or was not what its narinfo says.
OnFailure = Callable[[PathInfo, NarcoreError], None]
