"""How often a request is retried, and how long to wait before each retry. This module only computes; the caller sleeps."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_PAUSE = 0.2
MAX_PAUSES = 5.0
MAX_RETRY_AFTER = 10.0


def backoff(failures: int) -> float:
    """Return the seconds to wait after ``failures`` in a row. Each wait doubles; jitter spreads the retries of many clients."""
    jitter = 0.5 + random.random() / 2  # noqa: S311 - jitter, not a secret
    return FIRST_PAUSE * 2.0 ** (failures - 1) * jitter


class Pauses:
    """The pauses of one request: at most ``retries``, and limited in total, even if the server requests longer pauses."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures = 0
        self._slept = 0.0

    def after_failure(self, retry_after: float | None = None) -> float | None:
        """Return the seconds until the next attempt, or None to give up.

        ``retry_after`` is the value of the server's Retry-After header. If it exceeds the limit, gives up immediately: an
        earlier retry would not succeed, and our own client is waiting.
        """
        self._failures += 1
        pause = max(backoff(self._failures), retry_after or 0.0)
        bound = MAX_PAUSES if retry_after is None else MAX_RETRY_AFTER
        if self._failures > self._retries or self._slept + pause > bound:
            return None
        self._slept += pause
        return pause


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header (a number or a date: RFC 9110, section 10.2.3), None if it is invalid."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
