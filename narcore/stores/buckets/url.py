"""The URLs of buckets: ``s3://``, ``gs://`` and ``az://``. Pure text, nothing is looked up."""

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
# All three services allow less than this, but their old buckets and their imitators more; nothing here can end a host
# name or a path segment.
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,254}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


class Style(StrEnum):
    """Where the bucket is in a request: in front of the host, or of the path (Nix: s3-url.hh, ``addressing-style``)."""

    AUTO = "auto"
    PATH = "path"
    VIRTUAL = "virtual"


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """``scheme://bucket[/prefix][?parameters]``, taken apart. ``prefix`` has no slash around it and is decoded.

    Parameters that mean nothing here are kept and not complained of: Nix has many for writing.
    """

    scheme: str
    bucket: str
    prefix: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ``SettingsError``, with a message that holds no credentials."""
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
        """Without parameters, except the endpoint: the same bucket elsewhere is another store."""
        path = f"/{quote(self.prefix)}" if self.prefix else ""
        endpoint = self.parameters.get("endpoint", "")
        return f"{self.scheme}://{self.bucket}{path}" + (f"?endpoint={redacted(endpoint)}" if endpoint else "")

    def key(self, name: str) -> str:
        """The key of a file of the store."""
        return f"{self.prefix}/{name}" if self.prefix else name

    @property
    def endpoint(self) -> StoreUrl | None:
        """The parameter ``endpoint``: a URL, or ``host[:port]`` with the parameter ``scheme``. Raises ``SettingsError``."""
        return parse_endpoint(self.parameters.get("endpoint", ""), self.parameters.get("scheme", "") or "https")


@dataclass(frozen=True, slots=True)
class S3Access:
    """Where a bucket is reached: ``endpoint`` without the bucket, ``base`` with it."""

    endpoint: str
    base: str
    region: str
    virtual: bool


def s3_access(url: BucketUrl, region: str, endpoint: StoreUrl | None) -> S3Access:
    """By Nix's rules; ``endpoint`` is None for Amazon's own. Raises ``SettingsError``.

    Virtual hosts are for Amazon's own endpoint only, and not for a bucket with a dot in its name, which no certificate
    fits, unless they are asked for.
    """
    if not _REGION.fullmatch(region):
        raise SettingsError(f"{url}: region {region!r} is not the name of a region; they are like us-east-1")
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
    """None for an empty text. Raises ``SettingsError``."""
    if scheme not in ("http", "https"):
        raise SettingsError(f"scheme {scheme!r} is not http or https")
    if not text:
        return None
    endpoint = StoreUrl.parse(text if "://" in text else f"{scheme}://{text}")
    if endpoint.credentials is not None:
        raise SettingsError(f"endpoint {redacted(text)!r} has credentials in it; they have variables of their own")
    return endpoint


def _parameters(query: str) -> dict[str, str]:
    """Names and values, percent-decoded; a plus sign is one (as in Nix)."""
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return {_decoded(name): _decoded(value) for name, _, value in pairs}


def _decoded(text: str) -> str:
    return unquote(text, errors="surrogateescape")
