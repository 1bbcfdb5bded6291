"""``nar-serve``: look into binary caches, and take files out of them, at a terminal.

::

    target     what an argument names             session    the stores and instances it is looked up in
    ls cat get find info verify cache             one command each
    treewriter a tree to disk, safely             instance   a running nar-serve, over HTTP
    out        names on terminals and in pipes    progress   bars                       exits  errors and exit codes

A server never imports this package.
"""

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from narcore import __version__
from narcore.cli import cache, cat, find, get, info, ls, verify
from narcore.cli.exits import EXIT_CODES, Program, exit_code_of_usage, log_to_stderr

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


@click.group(
    cls=Program,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="nar-serve", message="%(prog)s %(version)s")
def nar_serve() -> None:
    log_to_stderr()


for command in (ls.ls, cat.cat, get.get, find.find, info.info, verify.verify, cache.cache):
    nar_serve.add_command(command)


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
