"""Converts the path in a narinfo to file names, for stores that find files by name and not by URL."""

from urllib.parse import unquote

from narcore.errors import StoreForbidden


def file_names(path: str) -> tuple[str, ...]:
    """Return the names to try for ``path``, the literal one first. Raises ``StoreForbidden`` if one leads out of the store.

    The first name is ``path`` unchanged: Nix appends a narinfo's URL to the directory in this way (local-binary-cache-store.cc).
    The second name is ``path`` parsed as a URL, percent-decoded and without its query. It is needed for a cache that was copied
    from an HTTP server and has URLs such as ``nar/x.nar?hash=y``, and for callers that percent-encode the path.
    """
    literal = _inside(path)
    as_url = _inside(unquote(path.partition("?")[0], errors="surrogateescape"))
    return (literal,) if as_url == literal else (literal, as_url)


def _inside(name: str) -> str:
    """Return ``name`` without ``.``, ``..`` and empty segments. Raises ``StoreForbidden`` if it leads out of the store."""
    if "\0" in name or name.startswith("/"):
        raise StoreForbidden(f"not a file of a store: {name!r}")
    segments: list[str] = []
    for segment in name.split("/"):
        if segment == "..":
            if not segments:
                raise StoreForbidden(f"{name!r} leads out of the store")
            segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    if not segments:
        raise StoreForbidden(f"{name!r} names no file")
    return "/".join(segments)
