"""The options of a volume, which come from untrusted users of containers."""

import pytest

from narmount.volumes.errors import VolumeRefused
from narmount.volumes.request import GROUP_MAX, PREFETCH_MAX, VolumeRequest

CACHES = ("main", "other")
HELLO = f"{'0' * 32}-hello"
WORLD = f"{'1' * 32}-world"


def test_without_options_a_volume_is_a_writable_view_of_the_first_cache() -> None:
    assert VolumeRequest.parse({}, CACHES) == VolumeRequest("main", "overlay", None, ())


def test_every_option_is_parsed() -> None:
    options = {
        "cache": "other",
        "group": "007",
        "prefetch": f"/nix/store/{HELLO},\n /nix/store/{WORLD} /nix/store/{HELLO}",
    }
    assert VolumeRequest.parse(options, CACHES) == VolumeRequest("other", "overlay", 7, (HELLO, WORLD))
    assert VolumeRequest.parse({"mode": "ro"}, CACHES).mode == "ro"
    assert VolumeRequest.parse({"group": str(GROUP_MAX)}, CACHES).group == GROUP_MAX


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"Mode": "ro"}, "unknown option 'Mode'; the options are cache, group, mode, prefetch"),
        ({"cache": "missing"}, "unknown cache 'missing'; the caches here are main, other"),
        ({"cache": "https://cache.example"}, "cache takes a name, not a URL; the caches here are main, other"),
        ({"mode": ""}, "unknown mode ''; use overlay"),
        ({"group": ""}, "group='' is not a group id"),
        ({"group": "-1"}, "group='-1' is not a group id"),
        ({"group": "٣"}, "group='٣' is not a group id"),
        ({"group": str(GROUP_MAX + 1)}, "4294967295 is not a group id"),
        ({"group": "1", "mode": "ro"}, "the volume is read-only; leave out group, or use mode=overlay"),
        ({"prefetch": "hello"}, "prefetch='hello' is not a store path"),
        ({"prefetch": f"/nix/store/{HELLO}/bin"}, "is not a store path"),
        ({"prefetch": " ".join(f"/nix/store/{HELLO}{n}" for n in range(PREFETCH_MAX + 1))}, "at most 100 store paths"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(VolumeRefused) as refused:
        VolumeRequest.parse(options, CACHES)
    assert message in str(refused.value)
