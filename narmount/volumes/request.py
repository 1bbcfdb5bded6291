"""Parses the volume request of a pod (CSI ``volumeAttributes``) or of Docker (``-o`` options)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

from narcore.errors import StorePathError
from narcore.formats.storepath import StorePath
from narmount.volumes.errors import VolumeRefused
from narmount.volumes.targets import shown

Mode = Literal["ro", "overlay"]
MODES: tuple[Mode, ...] = ("ro", "overlay")

OPTIONS = ("cache", "group", "mode", "prefetch")
PREFETCH_MAX = 100  # store paths; a few are enough, since their closures are prefetched, too
GROUP_MAX = 2**32 - 2  # for chown(2), 2**32 - 1 means "no change"

_GROUP = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class VolumeRequest:
    """A request for a volume: the mount to show, and who may write to the volume.

    ``cache`` is the name of a mount. ``group`` is the id of a group that, besides root, may write to the root of an overlay.
    ``prefetch`` has base names of store paths, which are fetched with their closures in the background.

    Raises VolumeRefused if the mode or the group is not valid.
    """

    cache: str
    mode: Mode = "overlay"
    group: int | None = None
    prefetch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise VolumeRefused(f"unknown mode {shown(self.mode)}; use overlay (writable) or ro (read-only)")
        if self.group is not None and not 0 <= self.group <= GROUP_MAX:
            raise VolumeRefused(f"{self.group} is not a group id; use a number from 0 to {GROUP_MAX}")
        if self.group is not None and self.mode == "ro":
            raise VolumeRefused(
                "group sets who may write, but the volume is read-only; leave out group, or use mode=overlay"
            )

    @classmethod
    def parse(cls, options: Mapping[str, str], caches: Sequence[str]) -> Self:
        """Parse options that a user gave. The first of ``caches`` is the default. Raises VolumeRefused.

        Users of containers may only choose a mount of the machine by name. They can't choose a cache by URL.
        """
        for name in options:
            if name not in OPTIONS:
                raise VolumeRefused(f"unknown option {shown(name)}; the options are {', '.join(OPTIONS)}")
        cache = options.get("cache", caches[0])
        if cache not in caches:
            reason = "cache takes a name, not a URL" if ":" in cache else f"unknown cache {shown(cache)}"
            raise VolumeRefused(f"{reason}; the caches here are {', '.join(caches)}")
        return cls(
            cache,
            mode=cast("Mode", options.get("mode", "overlay")),
            group=_group(options["group"]) if "group" in options else None,
            prefetch=_store_paths(options.get("prefetch", "")),
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Make a request from the result of ``dataclasses.asdict``. Raises VolumeRefused, ValueError, TypeError or KeyError."""
        cache, group, prefetch = fields["cache"], fields["group"], fields["prefetch"]
        if not isinstance(cache, str) or not isinstance(prefetch, list) or not isinstance(group, int | None):
            raise TypeError("not the options of a volume")
        return cls(cache, fields["mode"], group, tuple(StorePath.from_base_name(name).base_name for name in prefetch))


def _group(text: str) -> int:
    if not _GROUP.fullmatch(text):
        raise VolumeRefused(
            f"group={shown(text)} is not a group id; use a number, since group names differ between images"
        )
    return int(text)


def _store_paths(text: str) -> tuple[str, ...]:
    """Return the base names of store paths that are separated by white space or commas."""
    words = dict.fromkeys(text.replace(",", " ").split())
    if len(words) > PREFETCH_MAX:
        raise VolumeRefused(f"prefetch takes at most {PREFETCH_MAX} store paths; their closures are fetched as well")
    return tuple(map(_base_name, words))


def _base_name(text: str) -> str:
    try:
        return StorePath.parse(text).base_name
    except StorePathError as error:
        raise VolumeRefused(f"prefetch={shown(text)} is not a store path like /nix/store/<hash>-<name>") from error
