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

# Part of the ETags. Increase it when the bytes of an archive of the same subtree change.
_ETAG_VERSION = "1"

# Small chunks, such as the headers of small files, are joined up to this size: the server makes a system call for each chunk.
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Format:
    """An archive format: file name extension, media type, and the function that packs a subtree."""

    extension: str
    media_type: str
    pack: Pack


def _tar_zst(accessor: NarAccessor, node: Node, name: str) -> Iterator[bytes]:
    import zstandard  # imported here to keep the start fast

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
    """Return the subtree of ``node`` as an archive in the format ``name``, a key of ARCHIVES: 200 or 304.

    The length is not known in advance, so there are no ranges, and an error after the first byte cuts the connection. Raises the
    exceptions of reading that occur before the first byte.
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
    return Response(_Prefetched(joined(packed.pack(accessor, node, ref.name), _CHUNK)), headers=headers)


class _Prefetched:
    """An iterator whose first chunk is read immediately, so that an error in reading it becomes an error page."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._first = next(chunks, b"")

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        yield from self._chunks

    def close(self) -> None:
        close(self._chunks)
