"""The metadata of a store path: its narinfo, the store that it comes from, and why it is trusted."""

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
    """The reason why a narinfo is trusted."""

    UNCHECKED = ""  # no keys are configured
    STORE = "store"  # its store is trusted without signatures
    SIGNATURE = "signature"  # it is signed by a trusted key
    ADDRESS = "address"  # the store path is content-addressed

    @property
    def is_verified(self) -> bool:
        """Whether the narinfo itself was verified. False if only its store is trusted."""
        return self in (Trust.SIGNATURE, Trust.ADDRESS)

    @property
    def explanation(self) -> "TrustExplanation":
        """The texts that explain this reason to users."""
        return _EXPLANATIONS[self]


class TrustExplanation(NamedTuple):
    """Texts about a Trust. Pages show ``sentence``. ``answer`` answers "is it trusted?". ``check`` says what was checked."""

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
        "Not checked: this server trusts the store without signatures.",
        "yes: its store is trusted without signatures",
        "no signature checked (its store is trusted)",
    ),
    Trust.SIGNATURE: TrustExplanation(
        "Verified: signed by a key that this server trusts.",
        "yes: signed by a trusted key",
        "signature good",
    ),
    Trust.ADDRESS: TrustExplanation(
        "Verified: the store path is the content address of its contents.",
        "yes: the store path is content-addressed",
        "content address good",
    ),
}


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A narinfo, the store that it comes from, and why it is trusted. The narinfo's ``url`` names the NAR in that store."""

    narinfo: NarInfo
    store: BinaryCacheStore
    trust: Trust = Trust.UNCHECKED

    @property
    def nar_key(self) -> NarKey:
        """The key of the NAR in the disk cache."""
        return NarKey(self.narinfo.nar_hash.nix32, self.narinfo.nar_size)

    @property
    def nar_source(self) -> str:
        """The remote file with the NAR: store, URL, compression. If it is damaged, another file with this NAR may be correct."""
        return f"{self.store.url} {self.narinfo.url} {self.narinfo.compression}"

    def to_json(self) -> dict[str, object]:
        """Return the fields of nix path-info --json (see narinfo_json), and three fields about its source and trust.

        ``store`` is the URL of the store. ``trusted`` is true, or null if no keys are configured. ``trustedFor`` is the reason, a
        Trust; it is omitted if no keys are configured.
        """
        trusted: dict[str, object] = {"trusted": None}
        if self.trust is not Trust.UNCHECKED:
            trusted = {"trusted": True, "trustedFor": self.trust.value}
        return narinfo_json.to_json(self.narinfo) | {"store": self.store.url} | trusted


# Called if the NAR of a store path could not be fetched from its store, or does not match its narinfo.
OnFailure = Callable[[PathInfo, NarcoreError], None]
