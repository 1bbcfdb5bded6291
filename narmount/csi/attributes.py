"""What a pod says of its volume, in ``volumeAttributes``. It is for whoever may make pods, so it names caches, and never a URL."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from narcore.errors import StorePathError
from narcore.formats.storepath import StorePath
from narmount.volumes import Mode
from narmount.volumes.errors import VolumeRefused
from narmount.volumes.targets import shown

KNOWN = ("cache", "group", "mode", "prefetch")
PREFETCH_MAX = 100  # their closures are fetched, so a few are enough
GROUP_MAX = 2**32 - 2  # the last one means "none" to chown(2)

# What kubelet adds (podInfoOnMount): pod.name, pod.namespace, pod.uid, serviceAccount.name, ephemeral, serviceAccount.tokens.
KUBERNETES = "csi.storage.k8s.io/"

_GROUP = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Attributes:
    """``prefetch`` has base names of store paths. ``pod`` is for the log."""

    cache: str
    mode: Mode
    group: int | None
    prefetch: tuple[str, ...]
    pod: str

    @classmethod
    def parse(cls, context: Mapping[str, str], *, read_only: bool, mount_group: str, caches: Sequence[str]) -> Self:
        """``mount_group`` is the pod's fsGroup, or empty; the first of the ``caches`` is the default. Raises VolumeRefused."""
        given = {name: text for name, text in context.items() if not name.startswith(KUBERNETES)}
        for name in given:
            if name not in KNOWN:
                raise VolumeRefused(f"there is no volume attribute {shown(name)}; known are {', '.join(KNOWN)}")
        mode = _mode(given.get("mode", ""), read_only)
        if mode == "ro" and "group" in given:
            raise VolumeRefused("group says who may write, and a read-only volume lets nobody; leave one of them out")
        group = given.get("group", mount_group if mode == "overlay" else "")
        return cls(
            cache=_cache(given.get("cache", caches[0]), caches),
            mode=mode,
            group=_group(group) if group else None,
            prefetch=_store_paths(given.get("prefetch", "")),
            pod=_pod(context),
        )


def _cache(text: str, caches: Sequence[str]) -> str:
    if text not in caches:
        what = "a cache is named, not given as a URL" if ":" in text else f"there is no cache {shown(text)}"
        raise VolumeRefused(f"{what}; this node has {', '.join(caches)}")
    return text


def _mode(text: str, read_only: bool) -> Mode:
    if text not in ("", "ro", "overlay"):
        raise VolumeRefused(f"mode={shown(text)} is not known; it is overlay (what is written stays in the pod) or ro")
    if text == "overlay" and read_only:
        raise VolumeRefused("mode=overlay is there to be written to, and readOnly is true; leave one of them out")
    return "ro" if text == "ro" or read_only else "overlay"


def _group(text: str) -> int:
    if not (_GROUP.fullmatch(text) and int(text) <= GROUP_MAX):
        raise VolumeRefused(f"group={shown(text)} is not the number of a group; names are those of the image")
    return int(text)


def _store_paths(text: str) -> tuple[str, ...]:
    """White space or commas between them."""
    words = dict.fromkeys(text.replace(",", " ").split())
    if len(words) > PREFETCH_MAX:
        raise VolumeRefused(f"prefetch takes {PREFETCH_MAX} store paths at most; what they refer to is fetched as well")
    return tuple(map(_store_path, words))


def _store_path(text: str) -> str:
    try:
        return StorePath.parse(text).base_name
    except StorePathError as error:
        raise VolumeRefused(
            f"prefetch={shown(text)} is not a store path; it is one such as /nix/store/<hash>-<name>"
        ) from error


def _pod(context: Mapping[str, str]) -> str:
    name, namespace = (context.get(f"{KUBERNETES}pod.{what}", "?") for what in ("name", "namespace"))
    return shown(f"{namespace}/{name}")[1:-1]
