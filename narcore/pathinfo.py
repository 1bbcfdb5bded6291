"""What is known of a store path, and which store said so."""

from dataclasses import dataclass

from narcore.formats.narinfo import NarInfo
from narcore.stores.base import BinaryCacheStore


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A narinfo and the store that it is from: the NAR comes from the same one."""

    narinfo: NarInfo
    store: BinaryCacheStore
