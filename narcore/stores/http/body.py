"""The body of an HTTP response, which is resumed if the connection is cut."""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple, Self

from narcore.errors import StoreError, StoreTimeout, StoreUnavailable
from narcore.sizes import CHUNK_SIZE
from narcore.stores.http.retry import backoff
from narcore.stores.http.urls import without_query

if TYPE_CHECKING:
    import requests

    from narcore.stores.http.client import HttpClient

# A body that makes progress is resumed up to MAX_RESUMES times: a NAR of gigabytes arrives even through a proxy that cuts the
# connection after every 100 MB. A cut less than PROGRESS bytes after the previous cut counts as no progress.
MAX_RESUMES = 50
MAX_RESUMES_WITHOUT_PROGRESS = 3
PROGRESS = 1024 * 1024


class ContentRange(NamedTuple):
    """``bytes start-last/total``, with ``stop`` = last + 1; ``total`` is None for ``*``."""

    start: int
    stop: int
    total: int | None

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Parse the header; None if it is missing or invalid (RFC 9110, section 14.4)."""
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text or "", re.ASCII | re.IGNORECASE)
        if match is None:
            return None
        start, last, total = int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
        if last < start or (total is not None and last >= total):
            return None
        return cls(start, last + 1, total)


def range_header(start: int, stop: int | None) -> str:
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"


def content_encoding(headers: Mapping[str, str]) -> str | None:
    """Return the Content-Encoding in lower case, or None for ``identity``."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    return None if encoding in ("", "identity") else encoding


def strong_validator(headers: Mapping[str, str]) -> str | None:
    """Return the value for ``If-Range``: a strong ETag, else a strong Last-Modified (RFC 9110, section 13.1.5), else None.

    Last-Modified has a resolution of one second. It is strong if the Date of the response is at least one second later (section
    8.8.2.2): then no later change of the file can have the same date.
    """
    etag = headers.get("ETag", "")
    if re.fullmatch(r'"[^"]*"', etag):
        return etag
    modified = headers.get("Last-Modified")
    try:
        age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(modified or "")
    except (KeyError, ValueError, TypeError):  # TypeError: one of the dates has no time zone
        return None
    return modified if age.total_seconds() >= 1 else None


class HttpBody:
    """The bytes of ``url`` from ``start`` to ``stop``, which ``response`` has begun to send.

    ``stop`` is None if the server did not send the length of the file. Then this class detects a cut only if the body is chunked.
    A body that is not chunked ends with the connection, so a cut body looks complete; the later check of NarSize detects the cut.
    """

    def __init__(
        self,
        client: "HttpClient",
        url: str,
        response: "requests.Response",
        *,
        start: int,
        stop: int | None,
        total: int | None,
    ) -> None:
        self._client = client
        self._url = url
        self._what = without_query(url)
        self._response = response
        self._position = start
        self._stop = stop
        self._total = total
        self._etag = response.headers.get("ETag")
        self._encoding = content_encoding(response.headers)
        self._validator = strong_validator(response.headers)
        self._resumes = 0
        self._stuck = 0
        self._last_cut: int | None = None
        self._error: StoreError | None = None
        self._done = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if self._error is not None:  # a truncated file must never end cleanly, so later reads also fail
            raise self._error
        if self._done:
            raise StopIteration
        chunk = self._next_chunk()
        self._position += len(chunk)
        if not chunk:
            self._done = True
            self._client.discard(self._response)
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Discard the rest. Reading after that raises an error, because a closed body must not look like a complete one."""
        if not self._done and self._error is None:
            self._error = StoreUnavailable(f"{self._what}: closed before the end")
            self._response.close()

    def _next_chunk(self) -> bytes:
        """Return the next bytes, or no bytes at the end. Resumes the body after a cut, within the limits."""
        while self._position != self._stop:
            size = CHUNK_SIZE if self._stop is None else min(CHUNK_SIZE, self._stop - self._position)
            try:
                chunk = self._client.read(self._response, size, self._url)
                if chunk or self._stop is None:
                    return chunk
                raise StoreUnavailable(f"{self._what}: the bytes end early")
            except StoreUnavailable as cut:
                self._resume_or_fail(cut)
        return b""

    def _resume_or_fail(self, cut: StoreUnavailable) -> None:
        self._response.close()
        try:
            self._count_resume(cut)
            self._response = self._resumed(cut)
        except StoreError as error:
            self._error = error
            raise

    def _count_resume(self, cut: StoreUnavailable) -> None:
        # A server that stalls gets only one retry, because each retry takes a whole timeout, and a client waits for it.
        stalled_again = isinstance(cut, StoreTimeout) and self._position == self._last_cut
        progress = self._last_cut is None or self._position - self._last_cut >= PROGRESS
        self._last_cut = self._position
        self._resumes += 1
        self._stuck = 0 if progress else self._stuck + 1
        if self._validator is None or self._resumes > MAX_RESUMES or self._stuck > MAX_RESUMES_WITHOUT_PROGRESS:
            raise cut
        if stalled_again:
            raise cut
        if self._stuck:
            self._client.sleep(backoff(self._stuck))

    def _resumed(self, cut: StoreUnavailable) -> "requests.Response":
        headers = {"Range": range_header(self._position, self._stop), "If-Range": self._validator or ""}
        response = self._client.request("GET", self._url, headers)
        if not self._is_continued_by(response):
            response.close()
            status = response.status_code
            raise StoreUnavailable(f"{cut}; can't resume at byte {self._position} (status {status})") from None
        return response

    def _is_continued_by(self, response: "requests.Response") -> bool:
        """Return whether ``response`` is the rest of the same file. Status 200: the file changed, or ranges are not supported."""
        got = ContentRange.parse(response.headers.get("Content-Range"))
        if response.status_code != 206 or got is None or got.start != self._position:
            return False
        if self._stop is None:
            if got.stop != got.total:
                return False
            self._stop = self._total = got.stop
        same_size = got.stop == self._stop and (self._total is None or got.total in (None, self._total))
        same_tag = response.headers.get("ETag", self._etag) == self._etag
        return same_size and same_tag and content_encoding(response.headers) == self._encoding
