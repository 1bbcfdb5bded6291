"""``nar-serve``: the command line program, one group of commands.

A command is a module of ``narserve.commands``, and its function has the module's name. Ctrl-C and a closed pipe end the process by
their signals, as they end every other program: the shell sees 130 and 141.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

import click

from narcore.errors import NarcoreError
from narcore.version import __version__
from narserve.terminal.exits import EXIT_CODES, exit_code_of, exit_code_of_usage, log_to_stderr, print_error

HELP = """Look into Nix binary caches, and take files out of them, without Nix.

\b
  nar-serve ls -lR /nix/store/<hash>-hello-2.12
  nar-serve cat /nix/store/<hash>-hello-2.12/share/doc/README
  nar-serve get /nix/store/<hash>-hello-2.12/bin ./bin

A PATH is a store path, with or without its name (the <hash> is enough), and what is inside it behind a slash; or
the URL of the same on a running nar-serve, such as http://localhost:8383/nix/store/<hash>-hello-2.12/bin.
"""

EPILOG = f"""\b
Which caches are asked (the settings of the server hold here as well):
  --store URL, or NAR_CACHE_URL           https://cache.nixos.org unless given; several are asked in order
  NAR_TRUSTED_PUBLIC_KEYS                 whose signature a path must have; those of cache.nixos.org are known
  --cache-dir DIR|off, or NAR_CACHE_DIR   where unpacked archives are kept; NAR_CACHE_SIZE limits them

\b
Exit codes:
{EXIT_CODES}

\b
Completion of commands and options, for bash (zsh_source and fish_source do the same there):
  eval "$(_NAR_SERVE_COMPLETE=bash_source nar-serve)"
"""


# Each command and its module, in the order in which ``--help`` lists them.
MODULES = {
    "ls": "ls",
    "cat": "cat",
    "get": "get",
    "find": "find",
    "info": "info",
    "verify": "verify",
    "cache": "cache",
    "serve": "serve",
    "mount": "mount",
    "docker-volume": "docker_volume",
    "csi": "csi",
}


def load(name: str) -> click.Command:
    """Import the command of that name. Raises KeyError if there is none."""
    module = import_module(f"narserve.commands.{MODULES[name]}")
    command: click.Command = getattr(module, MODULES[name])
    return command


class Program(click.Group):
    """The group of all commands.

    It imports a command when it is called or listed: ``serve`` imports Flask, which ``ls`` does without. It turns every expected
    error into one line and an exit code. A traceback means a defect of ours.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, in the order of ``MODULES``."""
        return [*MODULES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None if there is none."""
        return load(cmd_name) if cmd_name in MODULES else None

    def invoke(self, ctx: click.Context) -> int:
        try:
            code = _code_of(lambda: super(Program, self).invoke(ctx))
            sys.stdout.flush()
        except BrokenPipeError:
            _die_by(signal.SIGPIPE)
        except KeyboardInterrupt:
            _die_by(signal.SIGINT)
        except (NarcoreError, OSError) as error:
            print_error(error)
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


def _die_by(number: signal.Signals) -> NoReturn:
    """End as the signal would have ended us: at once, whatever a thread is waiting for."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # not reached, unless the signal is blocked


@click.group(
    cls=Program,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="nar-serve", message="%(prog)s %(version)s")
def nar_serve() -> None:
    log_to_stderr()


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (by default that of the process); the exit code."""
    try:
        code: int | None = nar_serve.main(arguments, prog_name="nar-serve", standalone_mode=False)
    except click.ClickException as error:
        return exit_code_of_usage(error)
    except click.Abort:  # at a question
        return 128 + signal.SIGINT
    return code or 0


def main() -> NoReturn:
    """The entry point."""
    sys.exit(run())
