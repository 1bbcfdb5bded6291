"""The names of the objects of the tier. ``digits`` is the NarHash in nix32."""

CACHE_INFO = "nix-cache-info"


def nar_name(digits: str) -> str:
    """Return the name of the seekable zstd file of a NAR."""
    return f"nar/{digits}.nar.zst"


def index_name(digits: str) -> str:
    """Return the name of the index of a NAR."""
    return f"nar/{digits}.index"


def narinfo_name(hash_part: str) -> str:
    """Return the name of the narinfo of a store path."""
    return f"{hash_part}.narinfo"
