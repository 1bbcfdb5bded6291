"""Uploads a response to the bucket on the first request, and redirects every request to the copy."""

import time
from collections.abc import Callable

from werkzeug.datastructures import Headers

from api.offload.bucket import Bucket
from api.responses.base import Response, safe_headers
from narcore.concurrency.singleflight import SingleFlight
from narcore.errors import CapacityError

# A request that waits for the upload of another process gets a 503 with Retry-After after this time. It must be shorter than the
# timeout of API Gateway, 29 seconds.
WAIT_SECONDS = 20.0
POLL_SECONDS = 0.3


class Offload:
    """Serves responses from a bucket. Thread-safe; several processes share the bucket."""

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
        """Return a 302 to the copy in the bucket. ``headers`` are the headers of the whole response.

        ``whole`` makes the response; it is called if the copy does not exist and has to be uploaded. ``name`` is the name of the
        copy, made from the ETag, that is, from the hash of the NAR and the path in it. Raises WriteError if the bucket fails,
        CapacityError if the upload of another process takes longer than WAIT_SECONDS, and the exceptions of ``whole`` and of
        reading its body.
        """
        self._flights.do(name, lambda: self._ensure(name, whole))
        location = self._bucket.url_of(name, headers.get("Content-Disposition", ""))
        redirect = safe_headers()
        redirect["Location"] = location
        redirect["Content-Type"] = "text/plain; charset=utf-8"
        # The URL expires after an hour, or earlier if the key that signed it expires.
        redirect["Cache-Control"] = "no-store"
        return Response(f"See {location}\n", status=302, headers=redirect)

    def _ensure(self, name: str, whole: Callable[[], Response]) -> None:
        deadline = self._clock() + WAIT_SECONDS
        while not self._bucket.writer.has(name):
            if self._bucket.writer.claim(name):
                self._put(name, whole)
                return
            if self._clock() >= deadline:
                raise CapacityError("another process is still uploading this response to the bucket")
            self._sleep(POLL_SECONDS)

    def _put(self, name: str, whole: Callable[[], Response]) -> None:
        try:
            if self._bucket.writer.has(name):  # uploaded by another process between the check and the claim
                return
            with whole() as response:
                self._bucket.writer.put(name, response.iter_encoded(), _object_headers(response.headers))
        finally:
            self._bucket.writer.release(name)


def _object_headers(headers: Headers) -> dict[str, str]:
    return {"Content-Type": headers["Content-Type"], "Cache-Control": headers["Cache-Control"]}
