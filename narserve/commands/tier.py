"""``nar-serve tier``: adds store paths to the shared tier, and checks what it has."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress

import click

from narcore.binarycache import BinaryCache
from narcore.concurrency.closing import stage
from narcore.errors import NarcoreError, SettingsError
from narcore.formats.storepath import is_hash_part
from narcore.settings import Settings
from narcore.sizes import human_size
from narcore.stores import open_store, open_writer
from narcore.stores.writer import CLAIMS
from narcore.tier.check import check_path
from narcore.tier.writer import TierWriter
from narserve.session.session import Session, read_settings, session_options
from narserve.session.target import Target, target_argument
from narserve.terminal.exits import for_each
from narserve.terminal.output import StandardOutput
from narserve.terminal.progress import Tick, progress

CLOSURE_MAX = 10_000
"""The maximum number of store paths in one closure. The closure of a whole NixOS system has 1000 to 5000 store paths."""


@click.group(no_args_is_help=True, short_help="Fill and check the shared tier: add, stat, verify.")
def tier() -> None:
    """Fill and check the shared tier of NAR_TIER_URL: a bucket that lets any instance read one file of a large archive.

    \b
      export NAR_TIER_URL=s3://my-tier NAR_TIER_SECRET_KEY="$(cat tier.sk)"
      nar-serve tier add --closure /nix/store/<hash>-hello-2.12
      nar-serve tier verify

    Each archive (NAR) is in the tier once, in a form that can be read in parts, with a signed index. The tier is also a binary
    cache, from which Nix can copy.
    """


@tier.command(short_help="Add store paths.")
@click.argument("paths", metavar="PATH...", type=target_argument, nargs=-1, required=True)
@click.option("--closure", is_flag=True, help="Also add all store paths that PATH refers to, directly or indirectly.")
@click.option("--force", is_flag=True, help="Write the objects again, even if the tier has them.")
@session_options
def add(session: Session, paths: tuple[Target, ...], closure: bool, force: bool) -> None:
    """Fetch store paths, verify them, and add them to the tier. Signs their indexes with NAR_TIER_SECRET_KEY.

    Prints one line for each store path. Only store paths that are signed by a key of NAR_TRUSTED_PUBLIC_KEYS, or are
    content-addressed, can be added. NAR_TIER_WRITE is not required.
    """
    out = StandardOutput()
    with closing(_open_writer(session.settings)) as writer:

        def add_one(target: Target) -> None:
            info = session.path_info(target)
            name = info.narinfo.store_path
            if not info.trust.is_verified:
                raise SettingsError(f"{name} is not signed by a trusted key; readers of the tier would not use it")
            with progress(name.name, info.narinfo.nar_size) as tick:
                added = writer.add(info, lambda: _counted(session.nar(target), tick), force=force)
            out.line(f"{name}: {'added' if added else 'the tier has it, or another process is adding it'}")
            out.flush()

        for_each(_closure(session, paths) if closure else paths, add_one)


@tier.command(short_help="Show the number and size of archives and store paths.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
def stat(as_json: bool) -> None:
    """Show how many archives and store paths the tier has, and their size. Lists all objects of the bucket."""
    settings = _read_settings()
    names = {"paths": ".narinfo", "nars": ".nar.zst", "indexes": ".index"}
    counts, sizes = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    with closing(open_writer(settings.tier_url)) as writer:
        for found in writer.objects():
            if found.name.startswith(f"{CLAIMS}/"):
                continue
            for kind, ending in names.items():
                if found.name.endswith(ending):
                    counts[kind] += 1
                    sizes[kind] += found.size
        url = writer.url
    out = StandardOutput()
    if as_json:
        out.write(json.dumps({"url": url, **counts, "bytes": sum(sizes.values())}) + "\n")
    else:
        out.write(f"{'tier':10} {url}\n{'paths':10} {counts['paths']}\n")
        out.write(f"{'archives':10} {counts['nars']}, {human_size(sizes['nars'])}\n")
        out.write(f"{'indexes':10} {counts['indexes']}, {human_size(sizes['indexes'])}\n")
    out.flush()


@tier.command(short_help="Check all objects of store paths.")
@click.argument("paths", metavar="[PATH...]", type=target_argument, nargs=-1)
def verify(paths: tuple[Target, ...]) -> None:
    """Read store paths from the tier, and check signatures, digests, hashes and listings. Without PATH, checks all store paths.

    Prints one line for each good store path. If any is damaged, the exit code is 1; nar-serve tier add --force repairs it.
    """
    settings = _read_settings()
    out = StandardOutput()
    store = open_store(settings.tier_url)
    with BinaryCache([store], trusted_keys=settings.trusted_public_keys) as cache:

        def check(hash_part: str) -> None:
            narinfo = cache.path_info_anywhere(hash_part).narinfo
            with progress(narinfo.store_path.name, narinfo.nar_size) as tick:
                check_path(store, narinfo, settings.tier_public_keys, tick)
            out.line(f"{narinfo.store_path}: good")
            out.flush()

        for_each([target.hash_part for target in paths] or _hash_parts(settings), check)


def _closure(session: Session, paths: Iterable[Target]) -> Iterator[Target]:
    """Yield the arguments and all store paths that they refer to, each once. Raises SettingsError if there are too many.

    A store path without a narinfo is also yielded; the caller gets the error when it looks the store path up again.
    """
    pending, seen = list(paths), set[str]()
    while pending:
        target = pending.pop()
        if target.hash_part in seen:
            continue
        if len(seen) == CLOSURE_MAX:
            raise SettingsError(f"the closure has more than {CLOSURE_MAX} store paths; add its parts one after another")
        seen.add(target.hash_part)
        yield target
        with suppress(NarcoreError):
            narinfo = session.path_info(target).narinfo
            pending += [target.elsewhere(f"{narinfo.store_path.store_dir}/{name}") for name in narinfo.references]


@stage
def _counted(chunks: Iterable[bytes], tick: Tick) -> Iterator[bytes]:
    for chunk in chunks:
        tick(len(chunk))
        yield chunk


def _hash_parts(settings: Settings) -> Iterator[str]:
    """Yield the hash part of every narinfo in the tier."""
    with closing(open_writer(settings.tier_url)) as writer:
        for found in writer.objects():
            hash_part = found.name.removesuffix(".narinfo")
            if hash_part != found.name and is_hash_part(hash_part):
                yield hash_part


def _read_settings() -> Settings:
    settings = read_settings((), None)
    if not settings.tier_url:
        raise SettingsError("set NAR_TIER_URL to the address of the tier, for example s3://bucket/prefix")
    return settings


def _open_writer(settings: Settings) -> TierWriter:
    if not settings.tier_url or settings.tier_secret_key is None:
        raise SettingsError(
            "set NAR_TIER_URL to the address of the tier, and NAR_TIER_SECRET_KEY to the key that signs"
        )
    return TierWriter.open(settings.tier_url, settings.tier_secret_key, settings.tier_public_keys)
