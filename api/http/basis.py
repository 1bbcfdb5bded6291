"""What an answer about a node of a store path rests on, and the headers that follow from it.

An answer rests on verified data if all of it comes from a NAR that matches its NarHash. It also does if the NAR is checked while
the answer is sent, and the connection is cut on a mismatch. Listings (``.ls``) that a store sends, and ranges of a remote NAR, are
not signed, so they are not verified. The rule:

- ``ETag`` (`NodeRef.validators`) is the same before and after verification. It covers everything that the answer uses from the
  listing, so a wrong listing gives another ETag than the NAR does.
- ``Cache-Control`` of an unverified answer is UNVERIFIED. A verified answer keeps the lifetime that its response declares:
  FOREVER for what depends only on the NAR, PAGE for HTML pages, which also depend on the program.
- ``NAR-Verified`` has the word ``content`` only if the answer is verified.
"""

from dataclasses import dataclass

from werkzeug.datastructures import Headers

YEAR = 365 * 24 * 3600

FOREVER = f"public, max-age={YEAR}, immutable"
# A new version of the program reaches a visitor after ten minutes. After that, the old page may be shown once more while the
# browser loads the new one (RFC 5861 3).
PAGE = "public, max-age=600, stale-while-revalidate=86400"
# The time after which a wrong answer is gone from all HTTP caches.
UNVERIFIED = "public, max-age=300"
NO_STORE = "no-store"


@dataclass(frozen=True, slots=True)
class Basis:
    """What one answer rests on.

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
