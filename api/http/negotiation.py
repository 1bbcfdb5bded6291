"""Chooses a media type according to the Accept header (RFC 9110 12.5.1)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

HTML = "text/html"
JSON = "application/json"
TEXT = "text/plain"

_QVALUE = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")


class _Match(NamedTuple):
    quality: float
    specificity: int  # 2: the type itself, 1: type/*, 0: */*, -1: no match


def negotiate(accept: str | None, offers: Sequence[str], default: str) -> str:
    """Return the offer that the client prefers, or ``default``; among equal offers, the first.

    A wildcard expresses no preference: ``*/*`` selects the default, and ``application/json, */*`` selects JSON. If no offer is
    acceptable, the default is also returned, because it is more useful to the client than a 406.
    """
    ranges = _parse(accept or "*/*")
    matches = {offer: _match(ranges, offer) for offer in (*offers, default)}
    named = [offer for offer in offers if matches[offer].specificity > 0 and matches[offer].quality > 0]
    if not named and matches[default].quality == 0:
        named = [offer for offer in offers if matches[offer].quality > 0]
    best = max(named, key=matches.__getitem__, default=default)
    return best if matches[best].quality >= matches[default].quality else default


def _parse(accept: str) -> list[tuple[str, float]]:
    """Return the media ranges with their q-values. Other parameters, and elements with a malformed q, are ignored."""
    ranges = []
    for element in accept.lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        quality = next((value[2:].strip() for value in parameters if value.startswith("q=")), "1")
        if _QVALUE.fullmatch(quality):
            ranges.append((name, float(quality)))
    return ranges


def _match(ranges: Sequence[tuple[str, float]], offer: str) -> _Match:
    """Match ``offer`` against the media ranges; the most specific range that matches determines the quality."""
    main_type = offer.partition("/")[0]
    for specificity, name in ((2, offer), (1, f"{main_type}/*"), (0, "*/*")):
        qualities = [quality for given, quality in ranges if given == name]
        if qualities:
            return _Match(max(qualities), specificity)
    return _Match(0.0, -1)
