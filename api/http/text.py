"""Names in a store path, encoded for URLs, headers and display.

A name is a ``str`` whose undecodable bytes are lone surrogates (PEP 383). This module converts them back to bytes.
"""

from urllib.parse import quote, quote_from_bytes

from narcore.formats.names import to_bytes


def quote_path(path: str) -> str:
    """Percent-encode ``path`` for a URL, except slashes.

    Only unreserved characters (RFC 3986 2.3) stay unencoded: ``+``, ``=`` and ``?`` are legal in store paths, but some servers
    give them another meaning. The result is safe in a header, an HTML attribute and a URL path.
    """
    return quote_from_bytes(to_bytes(path), safe="/")


def display(name: str) -> str:
    """Escape the characters of ``name`` that are invisible or misleading: ``\\n``, ``\\xff``, ``\\u202e``."""
    return name if name.isprintable() else "".join(map(_escaped, name))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is not valid UTF-8
    return repr(character)[1:-1]


def content_disposition(filename: str, kind: str = "attachment") -> str:
    """Return a Content-Disposition of this ``kind`` with the file name (RFC 6266).

    A safe name is sent unchanged; any other name is sent twice, as ASCII and in the encoding of RFC 8187. ``%`` is not safe:
    browsers treat ``%41`` in a quoted name differently (RFC 6266 appendix D). A byte that is not valid UTF-8 can't be encoded by
    RFC 8187 and becomes U+FFFD.
    """
    plain = "".join(character if _is_plain(character) else "_" for character in filename)
    if plain == filename:
        return f'{kind}; filename="{plain}"'
    text = to_bytes(filename).decode("utf-8", "replace")
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='')}"


def _is_plain(character: str) -> bool:
    return " " <= character <= "~" and character not in '"\\%/'
