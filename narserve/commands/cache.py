"""``nar-serve cache``: upkeep of the directory that the server keeps NARs in."""

import functools
import json
import sys
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import click

from narcore.cache import upkeep
from narcore.cache.eviction import Entry
from narcore.cache.narcache import NarCache
from narcore.errors import SettingsError
from narcore.sizes import human_size
from narserve.session.session import read_settings
from narserve.terminal.exits import NO, print_message
from narserve.terminal.output import StandardOutput
from narserve.terminal.progress import progress

P = ParamSpec("P")


@click.group(no_args_is_help=True, short_help="Look after the disk cache: stat, verify, gc, clear.")
def cache() -> None:
    """Look after the directory in which unpacked archives (NARs) are kept.

    \b
      nar-serve cache stat
      nar-serve cache verify
      NAR_CACHE_SIZE=5G nar-serve cache gc

    All of this can be done while servers use the directory.
    """


def with_cache(command: Callable[Concatenate[NarCache, P], None]) -> Callable[..., None]:
    """Give a command the option for the directory, and the cache in it as its first argument."""

    @click.option("--cache-dir", metavar="DIR", help="The directory.  [env: NAR_CACHE_DIR]")
    @functools.wraps(command)
    def run(cache_dir: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
        settings = read_settings((), cache_dir)
        directory = settings.cache_dir
        if directory is None:
            raise SettingsError("the cache is turned off by NAR_CACHE_DIR=off; --cache-dir DIR names one")
        if not directory.is_dir():
            raise SettingsError(f"there is no cache at {directory} yet; --cache-dir DIR names another one")
        opened = NarCache(directory, size=settings.cache_size.in_bytes, max_fills=settings.max_fills)
        try:
            command(opened, *args, **kwargs)
        finally:
            opened.close()

    return run


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="The numbers as one JSON object.")
@with_cache
def stat(opened: NarCache, as_json: bool) -> None:
    """Show how much is kept, and how often that was of use.

    The counts are of all processes that have ever used the directory.
    """
    entries = opened.entries()
    size = sum(entry.size for entry in entries)
    nars, files = _counts(entries)
    counts = opened.counters.read()
    out = StandardOutput()
    if as_json:
        facts: dict[str, object] = {"directory": str(opened.layout.directory), "entries": nars, "files": files}
        out.write(json.dumps(facts | {"bytes": size, "limit": opened.limit} | counts) + "\n")
        out.flush()
        return
    rows = {
        "directory": str(opened.layout.directory),
        "entries": str(nars),
        "unpacked": f"{files} files out of them, as a mount needs them",
        "size": f"{human_size(size)} of {human_size(opened.limit)}",
        "hits": f"{counts['hit']} (out of the cache), {counts['join']} more of a download under way",
        "misses": f"{counts['miss']}, of which {counts['fill']} were kept and {counts['failure']} failed",
        "evicted": str(counts["evict"]),
    }
    for label, text in rows.items():
        out.write(f"{label:10} {text}\n")
    out.flush()


@cache.command(short_help="Hash every archive again, and remove bad ones.")
@with_cache
def verify(opened: NarCache) -> None:
    """Hash every archive again, compare the files unpacked from it, and remove those that are not what they should be.

    If there was one, it is named, and the exit code is 1.
    """
    entries = opened.entries()
    out = StandardOutput()
    good = bad = 0
    with progress("verifying", sum(entry.size for entry in entries)) as tick:
        for entry, right in upkeep.verify(opened.layout, tick):
            good, bad = good + right, bad + (not right)
            if not right:
                out.line(f"{entry.path(opened.layout)}: wrong, and removed")
                out.flush()
    out.line(f"{good} good, {bad} removed")
    out.flush()
    if bad:
        raise click.exceptions.Exit(NO)


@cache.command(short_help="Remove archives until the limit holds.")
@with_cache
def gc(opened: NarCache) -> None:
    """Remove what was used least recently until the limit holds, and what crashes have left.

    The limit is NAR_CACHE_SIZE: bytes, such as 20G, or a share of the file system, such as 10%.
    """
    _report(opened.collect())


@cache.command()
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@with_cache
def clear(opened: NarCache, yes: bool) -> None:
    """Remove every archive and what was unpacked from it. What is being read or fetched just now is not disturbed."""
    entries = opened.entries()
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError("clear asks before it removes anything, and there is no terminal: say --yes")
        size = human_size(sum(entry.size for entry in entries))
        question = f"Remove {_named(entries)} ({size}) from {opened.layout.directory}?"
        if not click.confirm(question, err=True):
            print_message("nothing was removed")
            raise click.exceptions.Exit(NO)
    _report(opened.clear())


def _report(gone: list[Entry]) -> None:
    out = StandardOutput()
    out.line(f"removed {_named(gone)}, {human_size(sum(entry.size for entry in gone))}")
    out.flush()


def _counts(entries: list[Entry]) -> tuple[int, int]:
    """How many archives there are, and how many files out of them."""
    files = sum(entry.file is not None for entry in entries)
    return len(entries) - files, files


def _named(entries: list[Entry]) -> str:
    nars, files = _counts(entries)
    archives = f"{nars} archive" if nars == 1 else f"{nars} archives"
    if not files:
        return archives
    return f"{archives} and {files} unpacked file" if files == 1 else f"{archives} and {files} unpacked files"
