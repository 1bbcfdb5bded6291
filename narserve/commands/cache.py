"""``nar-serve cache``: maintenance of the disk cache."""

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


@click.group(no_args_is_help=True, short_help="Maintain the disk cache: stat, verify, gc, clear.")
def cache() -> None:
    """Maintain the disk cache, the directory of unpacked archives (NARs).

    \b
      nar-serve cache stat
      nar-serve cache verify
      NAR_CACHE_SIZE=5G nar-serve cache gc

    All commands are safe while servers use the directory.
    """


def with_cache(command: Callable[Concatenate[NarCache, P], None]) -> Callable[..., None]:
    """Add the option ``--cache-dir`` to a command, and pass it the cache in that directory as its first argument."""

    @click.option("--cache-dir", metavar="DIR", help="The directory of the cache.  [env: NAR_CACHE_DIR]")
    @functools.wraps(command)
    def run(cache_dir: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
        settings = read_settings((), cache_dir)
        directory = settings.cache_dir
        if directory is None:
            raise SettingsError("the cache is turned off; name its directory with --cache-dir DIR or NAR_CACHE_DIR")
        if not directory.is_dir():
            raise SettingsError(f"there is no cache at {directory}; name another directory with --cache-dir DIR")
        opened = NarCache(directory, size=settings.cache_size.in_bytes, max_fills=settings.max_fills)
        try:
            command(opened, *args, **kwargs)
        finally:
            opened.close()

    return run


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
@with_cache
def stat(opened: NarCache, as_json: bool) -> None:
    """Show the size of the cache, and its hits and misses.

    The counts include all processes that have ever used the directory.
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
        "unpacked": f"{files} files unpacked for mounts",
        "size": f"{human_size(size)} of {human_size(opened.limit)}",
        "hits": f"{counts['hit']} (from the cache), and {counts['join']} that joined a download in progress",
        "misses": f"{counts['miss']}, of which {counts['fill']} were cached and {counts['failure']} failed",
        "evicted": str(counts["evict"]),
    }
    for label, text in rows.items():
        out.write(f"{label:10} {text}\n")
    out.flush()


@cache.command(short_help="Check the hash of every archive, and remove bad ones.")
@with_cache
def verify(opened: NarCache) -> None:
    """Check the hash of every archive and of the files unpacked from it, and remove the damaged ones.

    Each removed file is printed. If any file was removed, the exit code is 1.
    """
    entries = opened.entries()
    out = StandardOutput()
    good = bad = 0
    with progress("verifying", sum(entry.size for entry in entries)) as tick:
        for entry, right in upkeep.verify(opened.layout, tick):
            good, bad = good + right, bad + (not right)
            if not right:
                out.line(f"{entry.path(opened.layout)}: damaged, removed")
                out.flush()
    out.line(f"{good} good, {bad} removed")
    out.flush()
    if bad:
        raise click.exceptions.Exit(NO)


@cache.command(short_help="Shrink the cache to its limit.")
@with_cache
def gc(opened: NarCache) -> None:
    """Shrink the cache to its limit, least recently used archives first, and remove leftovers of crashes.

    The limit is NAR_CACHE_SIZE: a size such as 20G, or a share of the file system such as 10%.
    """
    _report(opened.collect())


@cache.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@with_cache
def clear(opened: NarCache, yes: bool) -> None:
    """Remove all archives and the files unpacked from them. Reads and downloads in progress are not disturbed."""
    entries = opened.entries()
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError(
                "clear asks for confirmation, and standard input is not a terminal; use --yes to confirm"
            )
        size = human_size(sum(entry.size for entry in entries))
        question = f"Remove {_description(entries)} ({size}) from {opened.layout.directory}?"
        if not click.confirm(question, err=True):
            print_message("nothing was removed")
            raise click.exceptions.Exit(NO)
    _report(opened.clear())


def _report(removed: list[Entry]) -> None:
    out = StandardOutput()
    out.line(f"removed {_description(removed)}, {human_size(sum(entry.size for entry in removed))}")
    out.flush()


def _counts(entries: list[Entry]) -> tuple[int, int]:
    """Return the number of archives, and the number of files unpacked from them."""
    files = sum(entry.file is not None for entry in entries)
    return len(entries) - files, files


def _description(entries: list[Entry]) -> str:
    nars, files = _counts(entries)
    archives = f"{nars} archive" if nars == 1 else f"{nars} archives"
    if not files:
        return archives
    return f"{archives} and {files} unpacked file" if files == 1 else f"{archives} and {files} unpacked files"
