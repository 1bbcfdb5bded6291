"""From the path in a narinfo to the name of a file, for the stores that have files and not URLs."""

from urllib.parse import unquote

from narcore.errors import StoreForbidden


def file_names(path: str) -> tuple[str, ...]:
    """The names to try for ``path``, the literal one first; raises ``StoreForbidden`` if one leads out of the store.

    Nix joins a narinfo's URL to the directory as it stands (local-binary-cache-store.cc), so the literal name wins. But
    a cache copied from an HTTP server keeps URLs such as ``nar/x.nar?hash=y``, and callers percent-encode what a URL
    can't hold: the second name is the path read as a URL, without its query and decoded.
    """
    literal = _inside(path)
    as_url = _inside(unquote(path.partition("?")[0], errors="surrogateescape"))
    return (literal,) if as_url == literal else (literal, as_url)


def _inside(name: str) -> str:
    """``name`` without ``.`` and ``..`` and empty segments."""
    if "\0" in name or name.startswith("/"):
        raise StoreForbidden(f"not a file of a store: {name!r}")
    kept: list[str] = []
    for segment in name.split("/"):
        if segment == "..":
            if not kept:
                raise StoreForbidden(f"leads out of the store: {name!r}")
            kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    if not kept:
        raise StoreForbidden(f"names no file: {name!r}")
    return "/".join(kept)
