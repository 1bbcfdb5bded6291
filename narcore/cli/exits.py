"""How a command ends: one line that says what is wrong and what to do, and an exit code.

Ctrl-C and a closed pipe end the process by their signals, as they end every other program: the shell sees 130 and 141.
"""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

import click

from narcore import errors
from narcore.cli import plugins
from narcore.cli.out import spelled_out

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


class Program(click.Group):
    """The group of all commands: nothing that goes wrong below it becomes a traceback, unless it is a mistake of ours."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added, then those that are plugged in."""
        return [*self.commands, *plugins.names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or plugins.load(cmd_name)

    def invoke(self, ctx: click.Context) -> int:
        try:
            code = _code_of(lambda: super(Program, self).invoke(ctx))
            sys.stdout.flush()
        except BrokenPipeError:
            _die_by(signal.SIGPIPE)
        except KeyboardInterrupt:
            _die_by(signal.SIGINT)
        except (errors.NarcoreError, OSError) as error:
            complain(error)
            _give_up_output()
            return exit_code_of(error)
        return code


def _code_of(command: Callable[[], object]) -> int:
    try:
        command()
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _give_up_output() -> None:
    """What could not be written (to a disk that is full) would be tried again, and complained of, at the interpreter's end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def for_each(items: Iterable[Item], action: Callable[[Item], None]) -> None:
    """``action`` on each, also after one that failed, as cat and ls do; then the worst exit code, if it is not 0."""
    worst = 0
    for item in items:
        try:
            action(item)
        except BrokenPipeError:
            raise
        except (errors.NarcoreError, OSError) as error:
            complain(error)
            worst = max(worst, exit_code_of(error))
    if worst:
        raise click.exceptions.Exit(worst)


def exit_code_of(error: BaseException) -> int:
    return _row(error)[0]


def complain(error: BaseException) -> None:
    """One line on standard error. What an instance says comes in sentences, and has its own advice."""
    words, advice = _words(error), _advice(error)
    say(words if words.endswith((".", "?")) or not advice else f"{words}; {advice}")


def say(text: str) -> None:
    """A line on standard error, whatever is in the text."""
    click.echo(f"nar-serve: {spelled_out(text)}", err=True)


def exit_code_of_usage(error: click.ClickException) -> int:
    """Report what click found wrong with the command line."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
    else:
        command = context.command_path if context else "nar-serve"
        say(f"{error.format_message().rstrip('.')}; try '{command} --help'")
    return USAGE


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def log_to_stderr() -> None:
    """What the rooms log, without what failed at a store: that is reported, or did not matter."""
    log = logging.getLogger("narcore")
    if not any(isinstance(handler, _Said) for handler in log.handlers):
        log.addHandler(_Said())
    for name in ("narcore.lookup", "narcore.substituter"):
        logging.getLogger(name).setLevel(logging.ERROR)


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


def _die_by(number: signal.Signals) -> NoReturn:
    """End as the signal would have ended us: at once, whatever a thread is waiting for."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # not reached, unless the signal is blocked
