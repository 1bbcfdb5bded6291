"""Range requests (RFC 9110, section 14). Section numbers in comments are those of RFC 9110."""

import re

import pytest

from tests.e2e import links, trees
from tests.e2e.client import Client, ClientResponse, url_path
from tests.e2e.nixcaches import NixCaches

DATA = b"Hello.\n" * 300
SIZE = len(DATA)
LAST_MODIFIED = "Thu, 01 Jan 1970 00:00:01 GMT"


@pytest.fixture
def path(caches: NixCaches) -> str:
    """The URL path of a file whose contents are DATA."""
    return url_path(caches.store_paths[links.HELLO], b"share/doc/hello/README")


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=5-", 5, SIZE),
        ("bytes=0-", 0, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        (f"bytes=-{SIZE}", 0, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes={SIZE - 1}-{SIZE * 9}", SIZE - 1, SIZE),
        (f"bytes=2-{10**30}", 2, SIZE),
        ("Bytes=5-9", 5, 10),  # 14.1: range units are case-insensitive
        ("bytes=5-9,", 5, 10),  # 5.6.1: empty list elements are ignored
        ("bytes= 5-9", 5, 10),
    ],
)
def test_a_single_range_returns_206(client: Client, path: str, header: str, start: int, stop: int) -> None:
    whole, got = client.get(path), client.get(path, {"Range": header})
    assert (got.status, got.body) == (206, DATA[start:stop])
    assert got.header("Content-Range") == f"bytes {start}-{stop - 1}/{SIZE}"
    assert got.header("Content-Length") == str(stop - start)
    for name in ("ETag", "Last-Modified", "Cache-Control", "Content-Type", "Accept-Ranges", "X-Content-Type-Options"):
        assert got.header(name) == whole.header(name)


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", f"bytes={10**30}-"])
def test_a_range_outside_the_file_returns_416(client: Client, path: str, header: str) -> None:
    got = client.get(path, {"Range": header})
    assert got.status == 416
    assert got.header("Content-Range") == f"bytes */{SIZE}"
    assert DATA not in got.body


@pytest.mark.parametrize(
    "header",
    ["lines=1-2", "bytes", "bytes=", "bytes=a-b", "bytes=5", "bytes=9-5", "bytes=--5", "bytes=1-2-3", "bytes=-", "bytes=1 -2",
     "bytes=0x1-2", "bytes=+1-2", "bytes=1-2;3-4", "5-9", "", "bytes=\u0661-2", "bytes=1-2,x"],
)  # fmt: skip
def test_unknown_units_and_malformed_ranges_are_ignored(client: Client, path: str, header: str) -> None:
    got = client.get(path, {"Range": header.encode().decode("latin-1")})
    assert (got.status, got.body) == (200, DATA)
    assert "Content-Range" not in got.headers


def test_head_ignores_ranges(client: Client, path: str) -> None:
    for header in ("bytes=5-9", f"bytes={SIZE}-"):
        got = client.head(path, {"Range": header})
        assert got.status == 200
        assert got.size == SIZE
        assert "Content-Range" not in got.headers


def test_if_none_match_and_if_match_take_precedence_over_ranges(client: Client, path: str) -> None:
    etag = client.get(path).header("ETag")
    assert client.get(path, {"Range": "bytes=5-9", "If-None-Match": etag}).status == 304
    assert client.get(path, {"Range": f"bytes={SIZE}-", "If-None-Match": etag}).status == 304
    assert client.get(path, {"Range": "bytes=5-9", "If-None-Match": '"other"'}).status == 206
    assert client.get(path, {"Range": "bytes=5-9", "If-Match": '"other"'}).status == 412


def test_if_range_must_match_the_etag(client: Client, path: str) -> None:
    etag = client.get(path).header("ETag")

    def status(condition: str) -> int:
        got = client.get(path, {"Range": "bytes=5-9", "If-Range": condition})
        assert got.body == (DATA[5:10] if got.status == 206 else DATA)
        return got.status

    assert status(etag) == 206
    assert status('"other"') == 200
    assert status(f"W/{etag}") == 200  # 13.1.5: strong comparison
    assert status("Fri, 02 Jan 1970 00:00:00 GMT") == 200  # 13.1.5: dates must match exactly
    assert status("nonsense") == 200
    beyond = client.get(path, {"Range": f"bytes={SIZE}-", "If-Range": '"other"'})
    assert (beyond.status, beyond.body) == (200, DATA)


def parts_of(got: ClientResponse) -> list[tuple[str, bytes]]:
    """Return Content-Range and contents of each part of a multipart response."""
    match = re.fullmatch(r'multipart/byteranges; *boundary="?([^"]+)"?', got.header("Content-Type"))
    assert match, got.header("Content-Type")
    delimiter = b"--" + match[1].encode()
    assert got.body.rstrip(b"\r\n").endswith(delimiter + b"--")
    parts = []
    for part in got.body.split(delimiter)[1:-1]:
        head, _, contents = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n"))
        assert "content-type" in fields
        parts.append((fields["content-range"], contents.removesuffix(b"\r\n")))
    return parts


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        ("bytes=0-4,10-14", [(0, 5), (10, 15)]),
        ("bytes=10-14,0-4", [(10, 15), (0, 5)]),
        ("bytes=0-0, -1", [(0, 1), (SIZE - 1, SIZE)]),
        (f"bytes=0-4,{SIZE}-,100-199,", [(0, 5), (100, 200)]),
        ("bytes=0-9,5-14", [(0, 10), (5, 15)]),
    ],
)
def test_several_ranges_return_a_multipart_response(
    client: Client, path: str, header: str, spans: list[tuple[int, int]]
) -> None:
    got = client.get(path, {"Range": header})
    assert got.status == 206
    assert got.header("Content-Length") == str(len(got.body))
    if spans == [(0, 10), (5, 15)] and "Content-Range" in got.headers:
        assert (got.header("Content-Range"), got.body) == (f"bytes 0-14/{SIZE}", DATA[:15])  # may be coalesced
        return
    assert "Content-Range" not in got.headers
    expected = {(f"bytes {start}-{stop - 1}/{SIZE}", DATA[start:stop]) for start, stop in spans}
    assert set(parts_of(got)) == expected


def test_ranges_outside_the_file_are_left_out(client: Client, path: str) -> None:
    got = client.get(path, {"Range": f"bytes={SIZE}-,3-5"})
    assert got.status == 206
    if "Content-Range" in got.headers:
        assert (got.header("Content-Range"), got.body) == (f"bytes 3-5/{SIZE}", DATA[3:6])
    else:
        assert parts_of(got) == [(f"bytes 3-5/{SIZE}", DATA[3:6])]
    assert client.get(path, {"Range": f"bytes={SIZE}-,{SIZE + 1}-"}).status == 416


@pytest.mark.parametrize(
    "header",
    [
        "bytes=" + ",".join(["0-"] * 10),
        "bytes=" + ",".join(["0-"] * 100),
        "bytes=" + ",".join(f"{n}-" for n in range(500)),
        "bytes=" + ",".join(f"{n}-{n + 100}" for n in range(0, 900, 60)),
    ],
)
def test_many_overlapping_ranges_are_refused(client: Client, path: str, header: str) -> None:
    got = client.get(path, {"Range": header})
    assert got.status == 416
    assert len(got.body) < SIZE


def test_several_ranges_of_a_large_compressed_file_are_sent(client: Client, caches: NixCaches) -> None:
    data = (caches.tree(trees.BIG_NAME) / "data.bin").read_bytes()
    path = url_path(caches.store_paths[trees.BIG_NAME], b"data.bin")
    got = client.get(path, {"Range": "bytes=19000000-19000099,5-9,-10"})
    expected = {
        f"bytes 19000000-19000099/{len(data)}": data[19_000_000:19_000_100],
        f"bytes 5-9/{len(data)}": data[5:10],
        f"bytes {len(data) - 10}-{len(data) - 1}/{len(data)}": data[-10:],
    }
    assert dict(parts_of(got)) == expected


def test_a_range_of_an_empty_file_returns_416(client: Client, caches: NixCaches) -> None:
    path = url_path(caches.store_paths[trees.EMPTIES_NAME], b"file")
    got = client.get(path, {"Range": "bytes=0-"})
    assert got.status == 416
    assert got.header("Content-Range") == "bytes */0"
    assert client.get(path, {"Range": "bytes=-5"}).status in (200, 416)


def test_only_files_support_ranges(client: Client, caches: NixCaches) -> None:
    directory = url_path(caches.store_paths[links.HELLO]) + "/"
    got = client.get(directory + "?format=json", {"Range": "bytes=0-4"})
    assert (got.status, got.body[:1], got.body.rstrip()[-1:]) == (200, b"{", b"}")
    assert client.get(directory + "bin/hi", {"Range": "bytes=0-4"}).status == 302
    assert client.get(directory + "bin/none", {"Range": "bytes=0-4"}).status == 404
