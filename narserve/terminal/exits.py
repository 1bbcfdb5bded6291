"""Exit codes of the commands, and error messages on standard error."""

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
  0     success
  1     not found, or verification failed (signature, hash, damaged data); find: nothing matches
  2     wrong usage: an argument, an option or a setting
  3     temporary failure: a cache is unreachable or too slow, or a disk is full
  130   interrupted by Ctrl-C
  141   the reader of the output closed the pipe"""

_OFF = "use another directory with --cache-dir DIR, or no cache with --cache-dir off"
_REPAIR = "the binary cache has to be repaired; try another one with --store URL"

# The exit code and the next step for each error. The row of the nearest base class applies.
_TABLE: dict[type[BaseException], tuple[int, str]] = {
    errors.NarcoreError: (TROUBLE, ""),
    errors.FormatError: (NO, _REPAIR),
    errors.StorePathError: (USAGE, ""),
    errors.SettingsError: (USAGE, ""),
    errors.IntegrityError: (NO, _REPAIR),
    errors.UntrustedSignature: (
        NO,
        "add the public key of this binary cache to NAR_TRUSTED_PUBLIC_KEYS, or append ?trusted=true to its URL to skip the check",
    ),
    errors.CompressionError: (NO, _REPAIR),
    errors.UnknownCompression: (TROUBLE, ""),
    errors.FileNotInStore: (NO, "check the hash, or try another cache with --store URL"),
    errors.WriteError: (TROUBLE, "check the address, the credentials and the permissions"),
    errors.StoreUnavailable: (TROUBLE, "try again later, or try another cache with --store URL"),
    errors.PathError: (NO, "list the files with nar-serve ls"),
    errors.OutsideStore: (NO, ""),
    errors.SymlinkLoop: (NO, ""),
    errors.CapacityError: (TROUBLE, "try again in a moment"),
    errors.CacheFailure: (TROUBLE, _OFF),
    errors.MountError: (TROUBLE, ""),
    errors.NarTooLarge: (TROUBLE, "raise the limit with NAR_MAX_NAR_SIZE"),
    OSError: (TROUBLE, ""),
}
_FULL = {errno.ENOSPC, errno.EDQUOT}

Item = TypeVar("Item")


def for_each(items: Iterable[Item], action: Callable[[Item], None]) -> None:
    """Run ``action`` on each item, and continue after errors, as cat and ls do. After errors, raises Exit with the highest code."""
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
    """Print one line on standard error: the message and the next step.

    A message that a running nar-serve server sent already contains the next step; it ends with a full stop or a question mark.
    """
    message, advice = _message(error), _advice(error)
    print_message(message if message.endswith((".", "?")) or not advice else f"{message}; {advice}")


def print_message(text: str) -> None:
    """Print one line on standard error, with unprintable characters escaped."""
    click.echo(f"nar-serve: {spelled_out(text)}", err=True)


def exit_code_of_usage(error: click.ClickException) -> int:
    """Print what is wrong with the command line, according to click. Returns the exit code."""
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
    """Print the warnings of narcore and narmount, but not those about a failed store. A command that fails prints its own error."""
    for name in ("narcore", "narmount"):
        log = logging.getLogger(name)
        if not any(isinstance(handler, _StderrHandler) for handler in log.handlers):
            log.addHandler(_StderrHandler())
    logging.getLogger("narcore.lookup").setLevel(logging.ERROR)


def _row(error: BaseException) -> tuple[int, str]:
    return next(_TABLE[base] for base in type(error).__mro__ if base in _TABLE)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        return f"{name}: {error.strerror}" if name else error.strerror
    return str(error) or type(error).__name__


def _advice(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in _FULL:
        return "free some space, and run the same command again"
    return _row(error)[1]
