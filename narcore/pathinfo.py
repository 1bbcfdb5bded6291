"""What is known of a store path, and which store said so."""

import enum
from dataclasses import dataclass

from narcore.formats.narinfo import NarInfo
from narcore.stores.base import BinaryCacheStore


class Trust(enum.StrEnum):
    """Why a narinfo is believed."""

    UNCHECKED = ""  # no keys are configured
    STORE = "store"  # its store is trusted as it is
    SIGNATURE = "signature"  # by a trusted key
    ADDRESS = "address"  # the store path itself says what is in it


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A narinfo and the store that it is from: the NAR comes from the same one."""

    narinfo: NarInfo
    store: BinaryCacheStore
    trust: Trust = Trust.UNCHECKED
