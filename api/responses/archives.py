"""The response for a subtree as an archive: tar, zip or NAR."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from werkzeug.wrappers import Request

from api.http.noderef import NodeRef
from api.http.text import content_disposition
from api.responses.base import Response, cache_forever, not_modified, safe_headers, set_validators
from api.responses.body import joined
from narcore.archive import nar, tar, zip_archive
from narcore.concurrency.closing import close
from narcore.formats.listing import Node
from narcore.nars.accessor import NarAccessor

Pack = Callable[[NarAccessor, Node, str], Iterator[bytes]]

# Part of the ETags: to be changed with the bytes that come out for the same subtree.
_ETAG_VERSION = "1"

# Small chunks (the headers of small files) are joined up to this: each costs a system call on its way out.
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Format:
    """How a subtree is packed, and what it is called then."""

    extension: str
    media_type: str
    pack: Pack


def _tar_zst(accessor: NarAccessor, node: Node, name: str) -> Iterator[bytes]:
    import zstandard  # here, since a start need not wait for it

    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    for chunk in tar(accessor, node, name):
        if packed := compressor.compress(chunk):
            yield packed
    yield compressor.flush()


ARCHIVES = {
    "tar": Format(".tar", "application/x-tar", tar),
    "tar.zst": Format(".tar.zst", "application/zstd", _tar_zst),
    "zip": Format(".zip", "application/zip", zip_archive),
    "nar": Format(".nar", "application/x-nix-nar", nar),
}


def archive_response(request: Request, accessor: NarAccessor, node: Node, ref: NodeRef, name: str) -> Response:
    """The subtree of ``node`` in the format of that name (a key of ARCHIVES): 200 or 304.

    Its length is not known beforehand, so there are no ranges, and a failure on the way cuts the connection. Raises what
    reading raises before the first byte.
    """
    packed = ARCHIVES[name]
    validators = ref.validators(f"{name} {_ETAG_VERSION}")
    headers = safe_headers()
    cache_forever(headers)
    set_validators(headers, validators)
    unchanged = not_modified(request, validators, headers)
    if unchanged:
        return unchanged
    headers["Content-Type"] = packed.media_type
    headers["Content-Disposition"] = content_disposition(ref.name + packed.extension)
    headers["Accept-Ranges"] = "none"
    if request.method == "HEAD":
        response = Response(headers=headers)
        response.automatically_set_content_length = False  # Werkzeug would count the bytes of the empty body
        return response
    return Response(_Started(joined(packed.pack(accessor, node, ref.name), _CHUNK)), headers=headers)


class _Started:
    """An iterator of which the first chunk is there already: until then, a failure is a proper error page."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._first = next(chunks, b"")

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        yield from self._chunks

    def close(self) -> None:
        close(self._chunks)
