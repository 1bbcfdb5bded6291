"""Whether all data behind an answer about a node of a store path is verified, and the headers that say so.

An answer is verified in two cases. In the first case, all of its data comes from a NAR that matches its NarHash. In the second
case, the NAR is checked while the answer is sent, and the connection is cut on a mismatch. Listings (``.ls``) that a store sends,
and ranges of a remote NAR, are not signed, so an answer that uses them is not verified. The headers are:

- ``ETag`` (`NodeRef.validators`) is the same before and after verification. It covers everything that the answer uses from the
  listing, so an answer from a wrong listing has another ETag than the same answer from the NAR.
- ``Cache-Control`` of an unverified answer is UNVERIFIED. A verified answer keeps the lifetime that its response declares:
  FOREVER if the response depends only on the NAR, PAGE for HTML pages, which also depend on the program.
- ``NAR-Verified`` has the word ``content`` only if the answer is verified.
"""

from dataclasses import dataclass

from werkzeug.datastructures import Headers

YEAR = 365 * 24 * 3600

FOREVER = f"public, max-age={YEAR}, immutable"
# For ten minutes after an upgrade of the program, a visitor may see an old page. When this time has passed, a browser may show the
# old page once more while it loads the new page (RFC 5861 3).
PAGE = "public, max-age=600, stale-while-revalidate=86400"
# The time after which a wrong answer is gone from all HTTP caches.
UNVERIFIED = "public, max-age=300"
NO_STORE = "no-store"


@dataclass(frozen=True, slots=True)
class Basis:
    """Whether one answer is verified, and how.

    ``trust``: how the narinfo was verified (``signature`` or ``address``), or "". ``is_verified``: whether the answer itself
    rests on verified data.
    """

    trust: str
    is_verified: bool

    @property
    def checks(self) -> str:
        """The value of ``NAR-Verified``, "" if nothing was verified."""
        return ", ".join(filter(None, (self.trust, "content" if self.is_verified else "")))

    def apply(self, headers: Headers) -> None:
        """Set ``NAR-Verified``, and limit the lifetime that ``headers`` declare for a verified answer."""
        if self.checks:
            headers["NAR-Verified"] = self.checks
        if not self.is_verified and headers.get("Cache-Control") != NO_STORE:
            headers["Cache-Control"] = UNVERIFIED
            headers.pop("Expires", None)
