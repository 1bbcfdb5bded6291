"""The URL of an HTTP store, and which URLs may be asked for on its behalf. Pure text, nothing is looked up.

A narinfo is not signed in its ``URL`` field, and a redirect comes from the network: both are input of a stranger.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from narcore.errors import SettingsError, StoreForbidden

_PORTS = {"http": 80, "https": 443}
# Browsers and libraries disagree on what these mean in a URL: no honest one has them.
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# RFC 3986, section 2.2 and 2.3, and "%": what is percent-encoded already stays as it is.
_LEGAL = "%:/?#[]@!$&'()*+,;=-._~"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """``http(s)://[user[:password]@]host[:port][/prefix][?parameters]``, taken apart.

    ``path`` ends in a slash. Parameters (``priority``, ``trusted``, ...) are for us, not for the server: they are
    dropped.
    """

    scheme: str
    authority: str
    path: str
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``SettingsError``, with a message that holds no credentials."""
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
        """The URL of a file. Raises ``StoreForbidden`` for a path that leads anywhere else than into this store.

        A relative path is put behind the store's path and may not climb above it. ``/path`` and an absolute URL are
        taken as RFC 3986 says (and Nix, since it resolves a narinfo's URL), if they stay on this host.
        """
        if not path or _UNFIT.search(path) or "#" in path or path.startswith("//"):
            raise StoreForbidden(f"not a file of {self}: {redacted(path)!r}")
        path = _quoted(path)
        if _SCHEME.match(path):
            return self._own(path)
        relative, question, query = path.partition("?")
        base = "/" if relative.startswith("/") else self.path
        return f"{self.scheme}://{self.authority}{_normal_path(base, relative.removeprefix('/'))}{question}{query}"

    def _own(self, url: str) -> str:
        parts = _split(url)
        if "@" in parts.netloc or not self.is_home(url):
            raise StoreForbidden(f"not on the host of {self}: {redacted(url)!r}")
        path = _normal_path("/", parts.path.removeprefix("/"))
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{_authority(parts)}{path}{query}"

    def is_home(self, url: str) -> bool:
        """Whether ``url`` is on this store's origin, and so may see its credentials.

        The step up from http to https on the default ports is the same host with a lock on the door.
        """
        here, there = _origin(_split(str(self))), _origin(_split(url))
        return there == here or (here == ("http", here[1], 80) and there == ("https", here[1], 443))


def redirect_target(current: str, location: str) -> str:
    """Where a ``Location`` header leads, in full and without a fragment. Raises ``StoreForbidden``.

    Another host is fine (caches redirect to object stores); another scheme, the step down from https to http, and
    credentials in the URL are not. Whether the host may be connected to is decided in ``guard``.
    """
    if _UNFIT.search(location):
        raise StoreForbidden("a redirect to something that is no URL")
    # http.client decodes headers as latin-1; servers that don't encode mean UTF-8.
    url = _absolute(current, _quoted(location.encode("latin-1", "replace").decode("utf-8", "surrogateescape")))
    parts = _split(url)
    if "@" in parts.netloc:
        raise StoreForbidden("a redirect to a URL with credentials in it")
    if current.startswith("https:") and parts.scheme != "https":
        raise StoreForbidden("a redirect from https to http")
    return url.partition("#")[0]


def redacted(text: str) -> str:
    """``text`` without what may be a user and a password, however broken the URL is."""
    return f"...@{text.rpartition('@')[2]}" if "@" in text else text


def without_query(url: str) -> str:
    """A URL for a message: its query may be a signature."""
    return url.partition("?")[0]


def _absolute(current: str, location: str) -> str:
    try:
        return urljoin(current, location)
    except ValueError:
        raise StoreForbidden("a redirect to something that is no URL") from None


def _split(url: str) -> SplitResult:
    """An http(s) URL with a host of plain ASCII and a port that is one, or ``StoreForbidden``."""
    try:
        parts = urlsplit(url)
        valid = parts.port != 0
    except ValueError:  # a port that is no number, a bracket without its pair
        valid = False
    if not valid or _UNFIT.search(url) or " " in url:
        raise StoreForbidden("it can't be read as a URL")
    if parts.scheme not in _PORTS:
        raise StoreForbidden("only http and https are allowed")
    if not parts.hostname or not parts.hostname.isascii() or "%" in parts.hostname:
        raise StoreForbidden("there is no host, or one that is not written in ASCII (use its xn-- form)")
    return parts


def _authority(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2].lower()


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS[parts.scheme]


def _credentials(parts: SplitResult) -> tuple[str, str] | None:
    if "@" not in parts.netloc:
        return None
    return unquote(parts.username or ""), unquote(parts.password or "")


def _quoted(text: str) -> str:
    """Percent-encode what may not stand in a URL; what is encoded already is left alone."""
    try:
        return quote(text, safe=_LEGAL, errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        raise StoreForbidden("it can't be read as a URL") from None


def _normal_path(base: str, relative: str) -> str:
    """``base`` (with a slash at its end) and ``relative``, with ``.`` and ``..`` resolved below ``base``."""
    kept: list[str] = []
    for segment in relative.split("/"):
        if segment == "..":
            if not kept:
                raise StoreForbidden(f"{relative!r} leads out of the store")
            kept.pop()
        elif segment != ".":
            if any(_is_trick(text) for text in _readings(segment)):
                raise StoreForbidden(f"{relative!r} may lead out of the store")
            kept.append(segment)
    return base + "/".join(kept)


def _readings(segment: str) -> Iterator[str]:
    """A segment as it stands, and what a server, or a proxy and then a server, may make of it by decoding it."""
    for _ in range(4):
        yield segment
        decoded = unquote(segment, errors="replace")
        if decoded == segment:
            return
        segment = decoded


def _is_trick(text: str) -> bool:
    # "..;x" is ".." to the servers that know parameters in a path (RFC 3986, section 3.3).
    return _UNFIT.search(text) is not None or any(part.partition(";")[0] in (".", "..") for part in text.split("/"))
