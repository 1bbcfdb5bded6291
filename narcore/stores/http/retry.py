"""How often a request is repeated, and how long to wait before it. Pure: the caller sleeps."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_PAUSE = 0.2
MAX_PAUSES = 5.0
MAX_RETRY_AFTER = 10.0


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, with jitter, so that clients don't come in step."""
    jitter = 0.5 + random.random() / 2  # noqa: S311 - a spread of times, not a secret
    return FIRST_PAUSE * 2.0 ** (failures - 1) * jitter


class Pauses:
    """The pauses of one request: at most ``retries``, and bounded in sum whatever the server asks for."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures = 0
        self._slept = 0.0

    def after_failure(self, retry_after: float | None = None) -> float | None:
        """Seconds until the next try, or None: give up.

        ``retry_after`` is the server's wish. One that does not fit means giving up at once: asking earlier than the
        server allows helps nobody, and our own client waits.
        """
        self._failures += 1
        pause = max(backoff(self._failures), retry_after or 0.0)
        bound = MAX_PAUSES if retry_after is None else MAX_RETRY_AFTER
        if self._failures > self._retries or self._slept + pause > bound:
            return None
        self._slept += pause
        return pause


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a ``Retry-After`` header (a number or a date: RFC 9110, section 10.2.3), None if it is no good."""
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
