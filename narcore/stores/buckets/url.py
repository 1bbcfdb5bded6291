"""The URLs of buckets: ``s3://``, ``gs://`` and ``az://``. Pure text processing, without network access."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self
from urllib.parse import quote, unquote

from narcore.errors import SettingsError
from narcore.stores.http.urls import StoreUrl, redacted

_URL = re.compile(
    r"(?P<scheme>s3|gs|az)://(?P<bucket>[^/?#@]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?", re.IGNORECASE
)
# This pattern allows more names than the three services allow for new buckets, because old buckets and compatible services use
# them. It allows no character that would end a host name or a path segment.
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,254}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


class Style(StrEnum):
    """Where a request names the bucket: in the host name, or in the path (Nix: s3-url.hh, ``addressing-style``)."""

    AUTO = "auto"
    PATH = "path"
    VIRTUAL = "virtual"


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """``scheme://bucket[/prefix][?parameters]``, parsed. ``prefix`` is decoded, without slashes around it.

    Unknown parameters are allowed: Nix has many for writing.
    """

    scheme: str
    bucket: str
    prefix: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL. Raises ``SettingsError``, with a message that contains no credentials."""
        match = _URL.fullmatch(text)
        if match is None:
            raise SettingsError(
                f"not the URL of a bucket: {redacted(text)!r}; write s3://bucket/prefix?region=us-east-1"
            )
        bucket, prefix = match["bucket"], "/".join(filter(None, _decoded(match["path"] or "").split("/")))
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            raise SettingsError(f"{redacted(text)!r}: {bucket!r} is not the name of a bucket")
        if _UNFIT.search(prefix) or any(segment in (".", "..") for segment in prefix.split("/")):
            raise SettingsError(f"{redacted(text)!r}: {prefix!r} can't be a prefix")
        return cls(match["scheme"].lower(), bucket, prefix, _parameters(match["query"] or ""))

    def __str__(self) -> str:
        """Return the URL with only one parameter, the endpoint: buckets of one name at two endpoints are two stores."""
        path = f"/{quote(self.prefix)}" if self.prefix else ""
        endpoint = self.parameters.get("endpoint", "")
        return f"{self.scheme}://{self.bucket}{path}" + (f"?endpoint={redacted(endpoint)}" if endpoint else "")

    def key(self, name: str) -> str:
        """Return the key of a file of the store."""
        return f"{self.prefix}/{name}" if self.prefix else name

    @property
    def endpoint(self) -> StoreUrl | None:
        """The parameter ``endpoint``: a URL, or ``host[:port]`` with the parameter ``scheme``. Raises ``SettingsError``."""
        return parse_endpoint(self.parameters.get("endpoint", ""), self.parameters.get("scheme", "") or "https")


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach a bucket. ``base`` is the URL of the bucket. ``endpoint`` is the URL that obstore needs: without the path of the
    bucket. ``virtual``: the bucket is part of the host name.
    """

    endpoint: str
    base: str
    region: str
    virtual: bool


def s3_access(url: BucketUrl, region: str, endpoint: StoreUrl | None) -> S3Access:
    """Return how to reach a bucket, by Nix's rules. ``endpoint`` None: Amazon's own endpoint. Raises ``SettingsError``.

    ``addressing-style`` decides whether the bucket is part of the host name. If it is not set, the bucket is part of the host
    name only at Amazon's own endpoint, and only if it is one DNS label: Amazon's certificate does not match a bucket with a dot.
    """
    if not _REGION.fullmatch(region):
        raise SettingsError(f"{url}: {region!r} is not the name of a region; write for example us-east-1")
    style, fits = parse_style(url), _DNS_LABEL.fullmatch(url.bucket) is not None
    virtual = style is Style.VIRTUAL or (style is Style.AUTO and endpoint is None and fits)
    if endpoint is None:
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        endpoint = StoreUrl.parse(f"{url.parameters.get('scheme') or 'https'}://s3.{region}.{domain}")
    if not virtual:
        return S3Access(str(endpoint), f"{endpoint}/{url.bucket}", region, virtual=False)
    if not all(map(_DNS_LABEL.fullmatch, url.bucket.split("."))) or endpoint.path != "/":
        raise SettingsError(f"{url}: the bucket can't be part of the host name; drop addressing-style=virtual")
    base = f"{endpoint.scheme}://{url.bucket}.{endpoint.authority}"
    return S3Access(base, base, region, virtual=True)


def parse_style(url: BucketUrl) -> Style:
    text = url.parameters.get("addressing-style") or "auto"
    try:
        return Style(text)
    except ValueError:
        raise SettingsError(f"{url}: addressing-style {text!r} is not one of {', '.join(Style)}") from None


def parse_endpoint(text: str, scheme: str) -> StoreUrl | None:
    """Return the URL of an endpoint; None for an empty text. Raises ``SettingsError``."""
    if scheme not in ("http", "https"):
        raise SettingsError(f"scheme {scheme!r} is not http or https")
    if not text:
        return None
    endpoint = StoreUrl.parse(text if "://" in text else f"{scheme}://{text}")
    if endpoint.credentials is not None:
        raise SettingsError(f"endpoint {redacted(text)!r} contains credentials; set them in the environment")
    return endpoint


def _parameters(query: str) -> dict[str, str]:
    """Return names and values, percent-decoded. A plus sign is not a space (as in Nix)."""
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return {_decoded(name): _decoded(value) for name, _, value in pairs}


def _decoded(text: str) -> str:
    return unquote(text, errors="surrogateescape")
