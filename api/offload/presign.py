"""Presigned URLs: anybody who has such a URL can read one object of a bucket for a limited time.

The signature is Signature Version 4 in the query. obstore can sign URLs too, but without ``response-content-disposition``.
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self
from urllib.parse import quote, urlsplit

from narcore.errors import SettingsError

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """AWS credentials. On Lambda, the environment of a function has the credentials of its role."""

    key_id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read the credentials from the environment. Raises SettingsError if they are not set."""
        key_id, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
        if not (key_id and secret):
            raise SettingsError(
                "NAR_OFFLOAD_URL needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; Lambda sets them from the role of the function"
            )
        return cls(key_id, secret, environ.get("AWS_SESSION_TOKEN", ""))


def presigned_get(
    url: str, credentials: Credentials, region: str, *, at: datetime, seconds: int, query: Mapping[str, str]
) -> str:
    """Sign a GET of ``url`` (percent-encoded, without a query) with these ``query`` parameters.

    Returns the URL with a signature that is valid for ``seconds`` from ``at`` (UTC) on.
    """
    parts = urlsplit(url)
    time = at.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    parameters = dict(query) | {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{credentials.key_id}/{scope}",
        "X-Amz-Date": time,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.token:
        parameters["X-Amz-Security-Token"] = credentials.token
    encoded = "&".join(sorted(f"{_encoded(name)}={_encoded(value)}" for name, value in parameters.items()))
    request = "\n".join(("GET", parts.path, encoded, f"host:{parts.netloc}", "", "host", "UNSIGNED-PAYLOAD"))
    text = "\n".join((_ALGORITHM, time, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{credentials.secret}".encode()
    for step in scope.split("/"):
        key = _hmac(key, step)
    return f"{url}?{encoded}&X-Amz-Signature={_hmac(key, text).hex()}"


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
