"""What a function with an empty disk needs for 4 KiB of a large NAR, with and without the shared tier.

``python -m tests.e2e.tierproof [--megabytes 500]`` prints a table. A small NAR is measured by test_tier.py. The store and the tier
are in an S3 server; relays count their requests and bytes.
"""

import argparse
import contextlib
import hashlib
import lzma
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from narcore.formats.signature import SecretKey
from narcore.stores.buckets.s3 import S3BinaryCacheStore
from narcore.stores.buckets.upload import BucketWriter
from narcore.stores.buckets.url import BucketUrl
from tests import ROOT
from tests.builders import hash_part, nar, nar_info, store_path
from tests.e2e import fronts, s3
from tests.e2e.client import Client, url_path
from tests.e2e.relay import Relay, relay
from tests.e2e.s3 import BUCKET

STORE_KEY, TIER_KEY = SecretKey("store-1", bytes(31) + b"s"), SecretKey("tier-1", bytes(31) + b"t")
NAME = "large-1.0"
PART = 4096


@dataclass(frozen=True, slots=True)
class Measured:
    """The cost of one answer: requests to store and tier, bytes that they sent, and seconds until the whole answer."""

    requests: int
    bytes: int
    seconds: float
    verified: str

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.bytes / 1e6:.2f} MB, {self.seconds:.2f} s, NAR-Verified: {self.verified}"
        )


@dataclass(frozen=True)
class Proof:
    """A store and a tier with one NAR, whose file ``big.txt`` is ``content``."""

    directory: Path
    content: bytes
    store: Relay
    tier: Relay
    settings: dict[str, str]

    @contextlib.contextmanager
    def instance(self, kind: str, tier_url: str) -> Iterator[Client]:
        """Run a new instance of a platform with an empty disk."""
        with tempfile.TemporaryDirectory(dir=self.directory) as empty:
            settings = self.settings | {"NAR_CACHE_DIR": f"{empty}/nars"}
            if tier_url:
                settings |= {"NAR_TIER_URL": tier_url, "NAR_TIER_PUBLIC_KEYS": str(TIER_KEY.public_key)}
            shape = replace(fronts.ONE_PROCESS, workers=0)
            log = Path(empty, "log")
            with fronts.running(settings, log, kind=kind, shape=shape) as front, Client(front) as client:
                yield client

    def measure(self, client: Client, path: str, start: int) -> Measured:
        """Get PART bytes of a file; fails if they are wrong."""
        self.store.reset()
        self.tier.reset()
        started = time.monotonic()
        got = client.get(f"{url_path(str(store_path(NAME)))}/{path}", {"Range": f"bytes={start}-{start + PART - 1}"})
        seconds = time.monotonic() - started
        assert got.status == 206, got
        if path == "big.txt":
            assert got.body == self.content[start : start + PART]
        requests = self.store.paths + self.tier.paths
        return Measured(len(requests), self.store.bytes + self.tier.bytes, seconds, got.headers.get("NAR-Verified", ""))

    @property
    def s3_tier(self) -> str:
        return f"s3://{BUCKET}/tier?endpoint={self.tier.url}"

    @property
    def http_tier(self) -> str:
        return f"{self.tier.url}/{BUCKET}/tier"


@contextlib.contextmanager
def prepared(directory: Path, size: int) -> Iterator[Proof]:
    """Make a NAR of about ``size`` bytes, put it into a store as xz, and add it to the tier."""
    content = random.Random(1).randbytes(size // 2).hex().encode()
    archive = nar({"big.txt": content, "next.txt": hashlib.sha256(b"next").hexdigest().encode() * 10_000})
    info = nar_info(store_path(NAME), archive, compression="none", secret_key=STORE_KEY)
    packed = lzma.compress(archive, preset=0)
    info = replace(info, url="nar/large.nar.xz", compression="xz", file_hash=None, file_size=len(packed))
    with (
        s3.running(directory / "s3.log") as server,
        relay(server.port) as store,
        relay(server.port) as tier,
    ):
        aws = {name: value for name, value in server.settings.items() if name.startswith("AWS_")}
        settings = aws | {
            "NAR_CACHE_URL": f"{store.url}/{BUCKET}/store",
            "NAR_TRUSTED_PUBLIC_KEYS": str(STORE_KEY.public_key),
        }
        files = {
            "nix-cache-info": b"StoreDir: /nix/store\n",
            f"{info.store_path.hash_part}.narinfo": info.to_text().encode(),
            info.url: packed,
        }
        _upload(f"s3://{BUCKET}/store?endpoint={server.url}", files, aws)
        added = {"NAR_TIER_URL": f"s3://{BUCKET}/tier?endpoint={server.url}", "NAR_TIER_SECRET_KEY": TIER_KEY.to_text()}
        command = [sys.executable, "-m", "narserve", "tier", "add", hash_part(NAME)]
        subprocess.run(command, cwd=ROOT, env=fronts.environment(settings | added), check=True, capture_output=True)
        yield Proof(directory, content, store, tier, settings)


def _upload(url: str, files: dict[str, bytes], environ: dict[str, str]) -> None:
    """Upload files in a process with the credentials in its environment."""
    import os

    os.environ.update(environ)
    writer = BucketWriter(BucketUrl.parse(url), S3BinaryCacheStore(url).open_client)
    for name, data in files.items():
        writer.put(name, [data], {})


def report(proof: Proof, kind: str, tier_url: str) -> list[Measured]:
    """Measure the first file, the next file, and the first file of a second instance."""
    place = len(proof.content) * 9 // 10
    with proof.instance(kind, tier_url) as client:
        found = [proof.measure(client, "big.txt", place), proof.measure(client, "next.txt", 1000)]
    with proof.instance(kind, tier_url) as client:
        return [*found, proof.measure(client, "big.txt", place)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=500)
    size = parser.parse_args().megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as directory, prepared(Path(directory), size) as proof:
        for kind, name, url in (
            ("lambda", "s3:// tier", proof.s3_tier),
            ("vercel", "http:// tier", proof.http_tier),
            ("lambda", "no tier", ""),
            ("vercel", "no tier", ""),
        ):
            try:
                found = report(proof, kind, url)
            except TimeoutError:
                print(f"{kind}, {name}: no answer within the timeout of the client, 30 s", flush=True)
                continue
            for step, measured in zip(("first file", "next file", "second instance"), found, strict=True):
                print(f"{kind}, {name}: {step}: {measured}", flush=True)


if __name__ == "__main__":
    main()
