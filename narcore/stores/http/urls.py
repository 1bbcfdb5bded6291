"""The URL of an HTTP store, and the URLs that may be requested for it. Only processes text; sends nothing.

The signature of a narinfo does not cover its ``URL`` field, and a redirect comes from the network: both are untrusted input.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from narcore.errors import SettingsError, StoreForbidden

_PORTS = {"http": 80, "https": 443}
# Browsers and libraries disagree on what these characters mean in a URL. No legitimate URL contains them.
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Characters that are not percent-encoded: those of RFC 3986, sections 2.2 and 2.3, and "%", so that encoded text stays unchanged.
_LEGAL = "%:/?#[]@!$&'()*+,;=-._~"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """``http(s)://[user[:password]@]host[:port][/prefix][?parameters]``, parsed.

    ``path`` ends in a slash. The parameters (``priority``, ``trusted``, ...) configure nar-serve and are not sent to the server.
    """

    scheme: str
    authority: str
    path: str
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL. Raises ``SettingsError``, with a message that contains no credentials."""
        try:
            parts = _split(text)
            if "@" in parts.path + parts.query + parts.fragment:
                raise StoreForbidden("percent-encode the / ? and # of a password, and the @ of a path")
            path = _normal_path("/", _quoted(parts.path).strip("/") + "/")
            return cls(parts.scheme, _authority(parts), "/" + path.lstrip("/"), _credentials(parts))
        except StoreForbidden as error:
            raise SettingsError(f"not the URL of a store: {redacted(text)!r}: {error}") from None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}".rstrip("/")

    def join(self, path: str) -> str:
        """Return the URL of a file. Raises ``StoreForbidden`` if the path leads out of this store.

        A relative path is appended to the store's path, and its ``..`` may not leave the store's path. ``/path`` and absolute URLs
        are resolved as in RFC 3986, and must stay on the store's host. Nix resolves the URL in a narinfo in the same way.
        """
        if not path or _UNFIT.search(path) or "#" in path or path.startswith("//"):
            raise StoreForbidden(f"not a file of {self}: {redacted(path)!r}")
        path = _quoted(path)
        if _SCHEME.match(path):
            return self._join_absolute(path)
        relative, question, query = path.partition("?")
        base = "/" if relative.startswith("/") else self.path
        return f"{self.scheme}://{self.authority}{_normal_path(base, relative.removeprefix('/'))}{question}{query}"

    def _join_absolute(self, url: str) -> str:
        parts = _split(url)
        if "@" in parts.netloc or not self.is_own_origin(url):
            raise StoreForbidden(f"not on the host of {self}: {redacted(url)!r}")
        path = _normal_path("/", parts.path.removeprefix("/"))
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{_authority(parts)}{path}{query}"

    def is_own_origin(self, url: str) -> bool:
        """Return whether ``url`` has this store's origin, and may therefore receive the store's credentials.

        A change from http to https on the same host counts as the same origin if both use the default port.
        """
        own, other = _origin(_split(str(self))), _origin(_split(url))
        return other == own or (own == ("http", own[1], 80) and other == ("https", own[1], 443))


def redirect_target(current: str, location: str) -> str:
    """Return the absolute URL of a ``Location`` header, without a fragment. Raises ``StoreForbidden``.

    Another host is allowed, because caches redirect to object stores; ``guard`` checks its address. Forbidden are schemes other
    than http and https, a change from https to http, and credentials in the URL.
    """
    if _UNFIT.search(location):
        raise StoreForbidden("a redirect to an invalid URL")
    # http.client decodes headers as latin-1; servers that do not percent-encode send UTF-8.
    url = _absolute(current, _quoted(location.encode("latin-1", "replace").decode("utf-8", "surrogateescape")))
    parts = _split(url)
    if "@" in parts.netloc:
        raise StoreForbidden("a redirect to a URL with credentials")
    if current.startswith("https:") and parts.scheme != "https":
        raise StoreForbidden("a redirect from https to http")
    return url.partition("#")[0]


def redacted(text: str) -> str:
    """Return ``text`` without everything before the last ``@``, which may be a user and a password, even in an invalid URL."""
    return f"...@{text.rpartition('@')[2]}" if "@" in text else text


def without_query(url: str) -> str:
    """Return a URL for a message: without its query, which may contain a signature."""
    return url.partition("?")[0]


def _absolute(current: str, location: str) -> str:
    try:
        return urljoin(current, location)
    except ValueError:
        raise StoreForbidden("a redirect to an invalid URL") from None


def _split(url: str) -> SplitResult:
    """Split an http(s) URL. Raises ``StoreForbidden`` unless its host is plain ASCII and its port is valid."""
    try:
        parts = urlsplit(url)
        valid = parts.port != 0
    except ValueError:  # the port is not a number, or a bracket is unbalanced
        valid = False
    if not valid or _UNFIT.search(url) or " " in url:
        raise StoreForbidden("it is not a valid URL")
    if parts.scheme not in _PORTS:
        raise StoreForbidden("only http and https are allowed")
    if not parts.hostname or not parts.hostname.isascii() or "%" in parts.hostname:
        raise StoreForbidden("the host is missing or not ASCII (use its xn-- form)")
    return parts


def _authority(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2].lower()


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    # One final dot marks the root of DNS (RFC 3986, section 3.2.2). A name with two final dots is not the same host.
    return parts.scheme, (parts.hostname or "").removesuffix("."), parts.port or _PORTS[parts.scheme]


def _credentials(parts: SplitResult) -> tuple[str, str] | None:
    if "@" not in parts.netloc:
        return None
    return unquote(parts.username or ""), unquote(parts.password or "")


def _quoted(text: str) -> str:
    """Percent-encode the characters that a URL may not contain. Text that is encoded already is not changed."""
    try:
        return quote(text, safe=_LEGAL, errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that does not represent a byte
        raise StoreForbidden("it is not a valid URL") from None


def _normal_path(base: str, relative: str) -> str:
    """Return ``base`` (which ends in a slash) and ``relative``, with ``.`` and ``..`` resolved below ``base``."""
    segments: list[str] = []
    for segment in relative.split("/"):
        if segment == "..":
            if not segments:
                raise StoreForbidden(f"{relative!r} leads out of the store")
            segments.pop()
        elif segment != ".":
            if any(_is_traversal(text) for text in _decodings(segment)):
                raise StoreForbidden(f"{relative!r} may lead out of the store")
            segments.append(segment)
    return base + "/".join(segments)


def _decodings(segment: str) -> Iterator[str]:
    """Yield a segment unchanged, and decoded once, twice and three times, because each server on the way may decode it."""
    for _ in range(4):
        yield segment
        decoded = unquote(segment, errors="replace")
        if decoded == segment:
            return
        segment = decoded


def _is_traversal(text: str) -> bool:
    # "..;x" means ".." to servers that support parameters in a path (RFC 3986, section 3.3).
    return _UNFIT.search(text) is not None or any(part.partition(";")[0] in (".", "..") for part in text.split("/"))
