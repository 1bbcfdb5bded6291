"""Conditional requests (RFC 9110 section 13): evaluates If-Match, If-None-Match, If-Range and the date conditions.

The date of every file in a store path is one second after the epoch, the modification time that Nix gives to files in a store.
"""

import re
from datetime import UTC, datetime
from enum import Enum, auto
from hashlib import sha256
from typing import NamedTuple

from werkzeug.datastructures import Headers
from werkzeug.http import parse_date

from narcore.formats.names import to_bytes

STORE_DATE = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)

# entity-tag = [ "W/" ] DQUOTE *etagc DQUOTE (8.8.3). A tag may contain commas, so the list is not split at commas.
_ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class Validators(NamedTuple):
    """The validators of a representation: a strong entity tag including its quotes, and optionally a date."""

    etag: str
    last_modified: datetime | None = None


class Outcome(Enum):
    """The result of evaluating the preconditions of a request."""

    PROCEED = auto()
    NOT_MODIFIED = auto()
    PRECONDITION_FAILED = auto()


def make_etag(*parts: str) -> str:
    """Make a strong entity tag from all values that determine the bytes: 128 bits of their SHA-256.

    ``parts`` may contain undecodable bytes as surrogates, like names in a NAR.
    """
    identity = to_bytes("\0".join(parts))
    return f'"{sha256(identity).hexdigest()[:32]}"'


def evaluate(headers: Headers, validators: Validators) -> Outcome:
    """Evaluate the preconditions of a GET or HEAD: RFC 9110 13.2.2, steps 1 to 4. Step 5 is ``range_applies``."""
    if "If-Match" in headers:
        if not _matches(headers["If-Match"], validators.etag, weak=False):
            return Outcome.PRECONDITION_FAILED
    elif _is_modified_since(headers.get("If-Unmodified-Since"), validators) is True:
        return Outcome.PRECONDITION_FAILED

    if "If-None-Match" in headers:
        if _matches(headers["If-None-Match"], validators.etag, weak=True):
            return Outcome.NOT_MODIFIED
    elif _is_modified_since(headers.get("If-Modified-Since"), validators) is False:
        return Outcome.NOT_MODIFIED
    return Outcome.PROCEED


def range_applies(headers: Headers, validators: Validators) -> bool:
    """Return whether the Range header is to be used, according to If-Range (13.1.5).

    The Range header is used if there is no If-Range, or if If-Range has the same strong tag or exactly the same date.
    """
    condition = headers.get("If-Range")
    if condition is None:
        return True
    if '"' in condition:
        return condition.strip() == validators.etag
    date = _date(condition)
    return date is not None and date == validators.last_modified


def _matches(condition: str, etag: str, *, weak: bool) -> bool:
    """Return whether the list ``condition`` contains the strong tag ``etag``; ``*`` matches any tag (13.1.1, 13.1.2)."""
    if condition.strip() == "*":
        return True
    return any(tag == etag and (weak or not marker) for marker, tag in _ENTITY_TAG.findall(condition))


def _is_modified_since(condition: str | None, validators: Validators) -> bool | None:
    """Compare the dates. Returns None if one of the dates is absent or can't be parsed."""
    date = _date(condition)
    if date is None or validators.last_modified is None:
        return None
    return validators.last_modified > date


def _date(text: str | None) -> datetime | None:
    try:
        return parse_date(text)
    except OverflowError:  # the year is too large; Werkzeug catches all other errors
        return None
