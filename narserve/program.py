"""``nar-serve``: the command line program, a group of commands.

Each command is a module of ``narserve.commands``, its function has the same name, and ``MODULES`` lists it. Ctrl-C and a closed
pipe end the process with SIGINT and SIGPIPE, as with any other program, so a shell sees the exit codes 130 and 141.
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

HELP = """List, read and copy files of Nix binary caches, without Nix.

\b
  nar-serve ls -lR /nix/store/<hash>-hello-2.12
  nar-serve cat /nix/store/<hash>-hello-2.12/share/doc/README
  nar-serve get /nix/store/<hash>-hello-2.12/bin ./bin

A PATH is a store path, optionally followed by a path inside it. The <hash> alone is enough to name a store path.
A PATH can also be a URL on a running nar-serve, such as http://localhost:8383/nix/store/<hash>-hello-2.12/bin.
"""

EPILOG = f"""\b
Settings (the environment variables of the server also apply here):
  --store URL, or NAR_CACHE_URL           the binary caches, asked by priority; default: https://cache.nixos.org
  NAR_TRUSTED_PUBLIC_KEYS                 the trusted keys; default: the key of cache.nixos.org if it is the only cache
  --cache-dir DIR|off, or NAR_CACHE_DIR   the directory that caches unpacked archives; NAR_CACHE_SIZE limits it

\b
Exit codes:
{EXIT_CODES}

\b
Completion of commands and options in bash (in zsh or fish, use zsh_source or fish_source):
  eval "$(_NAR_SERVE_COMPLETE=bash_source nar-serve)"
"""


# Maps each command to its module, in the order in which ``--help`` lists them.
MODULES = {
    "ls": "ls",
    "cat": "cat",
    "get": "get",
    "find": "find",
    "info": "info",
    "verify": "verify",
    "cache": "cache",
    "tier": "tier",
    "serve": "serve",
    "mount": "mount",
    "docker-volume": "docker_volume",
    "csi": "csi",
}


def load(name: str) -> click.Command:
    """Import a command by its name. Raises KeyError if there is no such command."""
    module = import_module(f"narserve.commands.{MODULES[name]}")
    command: click.Command = getattr(module, MODULES[name])
    return command


class Program(click.Group):
    """The group of all commands.

    Imports a command only when it is called or listed: ``serve`` imports Flask, which ``ls`` does not need. Turns every expected
    error into one line on standard error and an exit code; a traceback means a bug in nar-serve.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of ``MODULES``."""
        return [*MODULES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command called ``cmd_name``, or None if there is no such command."""
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
            _discard_output()
            return exit_code_of(error)
        return code


def _code_of(command: Callable[[], object]) -> int:
    try:
        command()
    except click.exceptions.Exit as end:
        return end.exit_code
    return 0


def _discard_output() -> None:
    """Discard output that could not be written, for example to a full disk.

    Otherwise the interpreter tries to write it again at exit, and reports the error a second time.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _die_by(number: signal.Signals) -> NoReturn:
    """End the process by the signal's default action: immediately, even if a thread is blocked."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # only reached if the signal is blocked


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
    """Run one command line and return its exit code. ``arguments`` defaults to the arguments of the process."""
    try:
        code: int | None = nar_serve.main(arguments, prog_name="nar-serve", standalone_mode=False)
    except click.ClickException as error:
        return exit_code_of_usage(error)
    except click.Abort:  # Ctrl-C at a prompt
        return 128 + signal.SIGINT
    return code or 0


def main() -> NoReturn:
    """Entry point of the program."""
    sys.exit(run())
