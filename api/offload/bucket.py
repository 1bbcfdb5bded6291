"""The bucket for large answers, accessed by obstore."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from api.offload.presign import Credentials, presigned_get
from narcore.errors import NarcoreError
from narcore.stores.buckets.obstoreclient import client_options, require_obstore, retry_config
from narcore.stores.buckets.url import BucketUrl, S3Access, parse_endpoint, s3_access

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import S3Store

# Long enough to begin a download; a role's credentials, which sign the URL, last for hours.
URL_SECONDS = 3600

# S3 takes 10,000 parts of one object: up to 80 GB of these.
_PART_SIZE = 8 << 20
_PARTS_AT_ONCE = 3

# The claim of an upload that did not end runs out after this. A function may not live longer (deploy/lambda/serverless.yml).
CLAIM_SECONDS = 300


class OffloadError(NarcoreError):
    """The bucket does not do what it is asked for."""


class Bucket:
    """``s3://bucket[/prefix][?region=&endpoint=]``, with the credentials of the environment. Names are relative to the prefix."""

    def __init__(
        self, url: BucketUrl, access: S3Access, environ: Mapping[str, str], now: Callable[[], datetime]
    ) -> None:
        self._url = url
        self._access = access
        self._environ = environ
        self._now = now
        self._made: S3Store | None = None

    @classmethod
    def open(
        cls, url: str, environ: Mapping[str, str] = os.environ, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Self:
        """Nothing is connected to yet. Raises SettingsError."""
        bucket = BucketUrl.parse(url)
        require_obstore(bucket.scheme)
        Credentials.from_environ(environ)
        region = bucket.parameters.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        named = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
        endpoint = bucket.endpoint or parse_endpoint(named, "https")
        return cls(bucket, s3_access(bucket, region or "us-east-1", endpoint), environ, now)

    def has(self, name: str) -> bool:
        import obstore

        with self._errors(name):
            try:
                obstore.head(self._store(), self._url.key(name))
            except FileNotFoundError:
                return False
        return True

    def put(self, name: str, chunks: Iterator[bytes], attributes: "Attributes") -> None:
        """All of ``chunks``, or nothing if one can't be had: what getting it raises comes out as it is."""
        import obstore

        with self._errors(name):
            obstore.put(
                self._store(),
                self._url.key(name),
                chunks,
                attributes=attributes,
                use_multipart=True,
                chunk_size=_PART_SIZE,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def claim(self, name: str) -> bool:
        """Whether the caller is the one to put ``name`` there. S3 lets one of many make an object or replace a version of it."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        key, expiry = self._claim(name), str(int(self._now().timestamp()) + CLAIM_SECONDS).encode()
        with self._errors(name):
            try:
                obstore.put(self._store(), key, expiry, mode="create")
            except (AlreadyExistsError, PreconditionError):
                pass
            else:
                return True
            try:
                held = obstore.get(self._store(), key)
                if int(bytes(held.bytes())) > self._now().timestamp():
                    return False
                obstore.put(self._store(), key, expiry, mode={"e_tag": held.meta["e_tag"]})
            except (FileNotFoundError, PreconditionError):  # given up just now, or taken by another
                return False
        return True

    def give_up(self, name: str) -> None:
        """End a claim."""
        import obstore

        with self._errors(name):
            obstore.delete(self._store(), self._claim(name))

    def url_of(self, name: str, disposition: str) -> str:
        """Where anybody can get it for a while; ``disposition``: the Content-Disposition that it comes with, or nothing."""
        return presigned_get(
            f"{self._access.base}/{quote(self._url.key(name), safe='/-_.~')}",
            Credentials.from_environ(self._environ),
            self._access.region,
            at=self._now(),
            seconds=URL_SECONDS,
            query={"response-content-disposition": disposition} if disposition else {},
        )

    def _claim(self, name: str) -> str:
        return self._url.key(f"claims/{name}")

    def _store(self) -> "S3Store":
        from obstore.store import S3Store

        # Not before the first request, as a forked worker has to have its own; twice, at worst, which does no harm.
        if self._made is None:
            credentials = Credentials.from_environ(self._environ)
            self._made = S3Store(
                self._url.bucket,
                config={
                    "access_key_id": credentials.key_id,
                    "secret_access_key": credentials.secret,
                    **({"session_token": credentials.token} if credentials.token else {}),
                    "region": self._access.region,
                    "aws_endpoint_url_s3": self._access.endpoint,
                    "virtual_hosted_style_request": self._access.virtual,
                },
                client_options=client_options(),
                retry_config=retry_config(),
            )
        return self._made

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, PermissionError, FileNotFoundError) as error:  # not found: the bucket itself
            # Its first line has the status and S3's code; what follows repeats the request.
            raise OffloadError(f"{self._url}: {name}: {str(error).partition(chr(10))[0][:300]}") from None
