"""Puts an answer into the bucket on the first request, and redirects every request to it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from werkzeug.datastructures import Headers

from api.offload.bucket import Bucket
from api.responses.base import YEAR, Response, safe_headers
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import CapacityError

if TYPE_CHECKING:
    from obstore import Attributes

# API Gateway gives up after 29 seconds. Before it does, those who wait for another's upload are told to come back.
WAIT_SECONDS = 20.0
POLL_SECONDS = 0.3


class Offload:
    """Answers that are fetched from a bucket. Thread-safe; several processes share the bucket."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = bucket
        self._clock = clock
        self._sleep = sleep
        self._flights: SingleFlight[str, None] = SingleFlight()

    def response(self, name: str, headers: Headers, whole: Callable[[], Response]) -> Response:
        """302 to the answer that would have ``headers``; ``whole`` gives it when it has to be put into the bucket.

        ``name`` is its name there, and comes from its ETag, that is from the NAR's hash and the path in it. Raises
        OffloadError, CapacityError while another process is at it for too long, and what ``whole`` and reading it raise.
        """
        self._flights.do(name, lambda: self._ensure(name, whole))
        location = self._bucket.url_of(name, headers.get("Content-Disposition", ""))
        answer = safe_headers()
        answer["Location"] = location
        answer["Content-Type"] = "text/plain; charset=utf-8"
        answer["Cache-Control"] = "no-store"  # the URL is good for an hour, and only as long as the key that signed it
        return Response(f"See {location}\n", status=302, headers=answer)

    def _ensure(self, name: str, whole: Callable[[], Response]) -> None:
        deadline = self._clock() + WAIT_SECONDS
        while not self._bucket.has(name):
            if self._bucket.claim(name):
                self._put(name, whole)
                return
            if self._clock() >= deadline:
                raise CapacityError("somebody else is putting it into the bucket, and not done yet")
            self._sleep(POLL_SECONDS)

    def _put(self, name: str, whole: Callable[[], Response]) -> None:
        try:
            if self._bucket.has(name):  # it came between the look and the claim
                return
            with whole() as response:
                self._bucket.put(name, response.iter_encoded(), _attributes(response.headers))
        finally:
            self._bucket.give_up(name)


def _attributes(headers: Headers) -> "Attributes":
    return {"Content-Type": headers["Content-Type"], "Cache-Control": f"public, max-age={YEAR}, immutable"}
