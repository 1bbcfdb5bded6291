"""Finds where the credentials for S3 come from, in the order of Amazon's tools, and whether obstore or boto3 reads them.

1. ``?profile=`` or ``AWS_PROFILE``: boto3, which supports every kind of profile
2. ``AWS_ACCESS_KEY_ID``, a web identity token, or the credentials endpoint of a container: obstore, from the environment
3. the credentials endpoint of a container without a token file: boto3, because obstore ignores such an endpoint
4. a ``[default]`` section in the shared configuration files of AWS: boto3
5. the metadata service of the instance, if it answers: obstore
6. otherwise there are no credentials, and requests are not signed

``AWS_SKIP_SIGNATURE=true`` turns signing off, except with ``?profile=``.
"""

import configparser
import importlib.util
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from narcore.errors import SettingsError, StoreForbidden
from narcore.stores.buckets import metadata

if TYPE_CHECKING:
    from obstore.store import S3Credential

_IN_ENVIRONMENT = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
)
_SHARED_FILES = (("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), ("AWS_CONFIG_FILE", ".aws/config"))
# A section with one of these keys provides credentials, not only a region.
_SHARED_KEYS = ("aws_access_key_id", "role_arn", "credential_process", "sso_session", "sso_start_url", "login_session")
# botocore renews credentials ten minutes before they expire, so the credentials that it returns are valid for ten minutes or more.
_PROFILE_TTL = timedelta(minutes=10)


class Source(Enum):
    BOTO3 = auto()
    ENVIRONMENT = auto()
    INSTANCE = auto()
    NONE = auto()


def known_source(profile: str, environ: Mapping[str, str]) -> Source | None:
    """Return the source without using the network. None: only the metadata service is left to ask. Raises ``SettingsError``."""
    source = _known_source(profile, environ)
    if source is Source.BOTO3 and importlib.util.find_spec("boto3") is None:
        raise SettingsError(
            "a profile of the AWS configuration files, or the role of a container without a token file, needs boto3, "
            "which is not installed. Run pip install boto3, "
            "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    return source


def _known_source(profile: str, environ: Mapping[str, str]) -> Source | None:
    if profile:
        return Source.BOTO3
    if environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return Source.NONE
    if environ.get("AWS_PROFILE"):
        return Source.BOTO3
    if any(all(environ.get(name) for name in names) for names in _IN_ENVIRONMENT):
        return Source.ENVIRONMENT
    if environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return Source.BOTO3
    if any(_has_default(environ.get(name) or f"~/{place}") for name, place in _SHARED_FILES):
        return Source.BOTO3
    return Source.NONE if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" else None


def find_source(profile: str, environ: Mapping[str, str]) -> Source:
    """Return the source of the credentials. Takes one second at most. Raises ``SettingsError``."""
    source = known_source(profile, environ)
    if source is not None:
        return source
    # Version 2 of the metadata service (IMDSv2): the first request asks for a token, as obstore's does.
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = f"{metadata_endpoint(environ)}/latest/api/token"
    return Source.INSTANCE if metadata.answers("PUT", token, lifetime) else Source.NONE


def metadata_endpoint(environ: Mapping[str, str]) -> str:
    """Return the URL of the metadata service: from the variable of the AWS SDKs, else from obstore's variable, else the default."""
    names = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_METADATA_ENDPOINT")
    return next((environ[name].rstrip("/") for name in names if environ.get(name)), metadata.LINK_LOCAL)


def open_boto3(profile: str) -> tuple[Callable[[], "S3Credential"], str | None]:
    """Return a provider of the credentials of a profile, and its region.

    An empty ``profile`` is the profile that ``AWS_PROFILE`` names, or ``default``.

    Raises ``StoreForbidden`` if boto3 finds no credentials.
    """
    import boto3
    import botocore.exceptions
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session(profile_name=profile or None)
        return Boto3CredentialProvider(session, ttl=_PROFILE_TTL), session.region_name
    except (botocore.exceptions.BotoCoreError, ValueError) as error:  # its message may contain a service's answer
        named = profile or os.environ.get("AWS_PROFILE") or "default"
        raise StoreForbidden(
            f"boto3 finds no credentials for profile {named!r} ({type(error).__name__}); "
            "to see why, run aws sts get-caller-identity --profile ..."
        ) from None


def _has_default(path: str) -> bool:
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        # os.path.expanduser, unlike pathlib, does not fail for a user without a home directory, which is usual in containers.
        parser.read_string(Path(os.path.expanduser(path)).read_text(errors="replace"))  # noqa: PTH111  see above
        return any(parser.has_option("default", key) for key in _SHARED_KEYS)
    except (OSError, configparser.Error):
        return False
