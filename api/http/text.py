"""Names of a store path as they appear in URLs, in headers and before people's eyes.

A name is a ``str`` whose undecodable bytes are lone surrogates (PEP 383). This is where they turn back into bytes.
"""

from urllib.parse import quote, quote_from_bytes

from narcore.formats.names import to_bytes


def quote_path(path: str) -> str:
    """``path`` percent-encoded for a URL; ``/`` stays.

    Only unreserved characters (RFC 3986 2.3) are left as they are: ``+``, ``=`` and ``?`` are legal in store paths,
    and mean something else to one server or another. What comes out can't break out of a header, an attribute or the
    path.
    """
    return quote_from_bytes(to_bytes(path), safe="/")


def display(name: str) -> str:
    """``name`` with what can't be shown, or would mislead the eye, spelled out: ``\\n``, ``\\xff``, ``\\u202e``."""
    return name if name.isprintable() else "".join(map(_spelled_out, name))


def _spelled_out(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is no UTF-8
    return repr(character)[1:-1]


def content_disposition(filename: str, kind: str = "attachment") -> str:
    """``kind``, with the name as RFC 6266 says: plain where that is safe, else ASCII and RFC 8187's form.

    ``%`` counts as unsafe: browsers differ on ``%41`` in a quoted name (RFC 6266 appendix D). A byte that is not
    UTF-8 has no spelling in RFC 8187 and becomes U+FFFD.
    """
    plain = "".join(character if _is_plain(character) else "_" for character in filename)
    if plain == filename:
        return f'{kind}; filename="{plain}"'
    text = to_bytes(filename).decode("utf-8", "replace")
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='')}"


def _is_plain(character: str) -> bool:
    return " " <= character <= "~" and character not in '"\\%/'
