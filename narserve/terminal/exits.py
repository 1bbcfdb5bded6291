"""The exit codes of the commands, and the lines about errors on standard error."""

import errno
import logging
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import click

from narcore import errors
from narserve.terminal.output import spelled_out

NO, USAGE, TROUBLE = 1, 2, 3

EXIT_CODES = """\
  0     all done
  1     it is not there, or is not what it should be (signature, hash, damaged data); find: nothing matches
  2     used wrongly: an argument, an option or a setting
  3     trouble that may pass: a cache can't be reached or is too slow, a disk is full
  130   interrupted by Ctrl-C
  141   whoever read the output has stopped reading"""

_OFF = "--cache-dir DIR uses another directory, --cache-dir off none"

# The nearest class counts. The advice is the next step.
_TABLE: dict[type[BaseException], tuple[int, str]] = {
    errors.NarcoreError: (TROUBLE, ""),
    errors.FormatError: (NO, "the cache has to be repaired; --store URL asks another one"),
    errors.StorePathError: (USAGE, ""),
    errors.SettingsError: (USAGE, ""),
    errors.IntegrityError: (NO, "the cache has to be repaired; --store URL asks another one"),
    errors.UntrustedSignature: (
        NO,
        "NAR_TRUSTED_PUBLIC_KEYS names the keys that are trusted, ?trusted=true behind a store's URL does without",
    ),
    errors.CompressionError: (NO, "the cache has to be repaired; --store URL asks another one"),
    errors.UnknownCompression: (TROUBLE, ""),
    errors.FileNotInStore: (NO, "is the hash right? --store URL asks another cache"),
    errors.StoreUnavailable: (TROUBLE, "try again later, or another cache with --store URL"),
    errors.PathError: (NO, "nar-serve ls shows what is there"),
    errors.OutsideStore: (NO, ""),
    errors.SymlinkLoop: (NO, ""),
    errors.CapacityError: (TROUBLE, "try again in a moment"),
    errors.CacheFailure: (TROUBLE, _OFF),
    errors.MountError: (TROUBLE, ""),
    errors.NarTooLarge: (TROUBLE, "NAR_MAX_NAR_SIZE sets how large it may be"),
    OSError: (TROUBLE, ""),
}
_FULL = {errno.ENOSPC, errno.EDQUOT}

Item = TypeVar("Item")


def for_each(items: Iterable[Item], action: Callable[[Item], None]) -> None:
    """``action`` on each, also after one that failed, as cat and ls do; then the worst exit code, if it is not 0."""
    worst = 0
    for item in items:
        try:
            action(item)
        except BrokenPipeError:
            raise
        except (errors.NarcoreError, OSError) as error:
            print_error(error)
            worst = max(worst, exit_code_of(error))
    if worst:
        raise click.exceptions.Exit(worst)


def exit_code_of(error: BaseException) -> int:
    return _row(error)[0]


def print_error(error: BaseException) -> None:
    """Print one line on standard error: the message and the next step, which the message of an instance has already."""
    words, advice = _words(error), _advice(error)
    print_message(words if words.endswith((".", "?")) or not advice else f"{words}; {advice}")


def print_message(text: str) -> None:
    """Print one line on standard error, with unprintable characters escaped."""
    click.echo(f"nar-serve: {spelled_out(text)}", err=True)


def exit_code_of_usage(error: click.ClickException) -> int:
    """Report what click found wrong with the command line."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    else:
        command = context.command_path if context else "nar-serve"
        print_message(f"{error.format_message().rstrip('.')}; try '{command} --help'")
    return USAGE


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_message(self.format(record))


def log_to_stderr() -> None:
    """Print the warnings of the packages, except for failures of a store: the command reports those that matter."""
    for name in ("narcore", "narmount"):
        log = logging.getLogger(name)
        if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
            log.addHandler(_StderrHandler())
    logging.getLogger("narcore.lookup").setLevel(logging.ERROR)


def _row(error: BaseException) -> tuple[int, str]:
    return next(_TABLE[base] for base in type(error).__mro__ if base in _TABLE)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        return f"{name}: {error.strerror}" if name else error.strerror
    return str(error) or type(error).__name__


def _advice(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in _FULL:
        return "make room, and run the same again"
    return _row(error)[1]
