"""Progress bars and messages for a waiting user: on standard error, and only if it is a terminal.

click draws the bars: one line that counts bytes is enough, and the package rich would add three dependencies.
"""

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from narcore.sizes import human_size
from narserve.terminal.exits import print_message
from narserve.terminal.output import spelled_out

Tick = Callable[[int], None]

# Minimum number of bytes for a bar: a smaller operation ends before a user could read the bar.
WORTH_SHOWING = 1 << 20
STEPS = 500
PATIENCE_SECONDS = 4.0


@contextmanager
def progress(label: str, total: int) -> Generator[Tick]:
    """Show a bar for ``total`` bytes. Yields a function that takes the number of bytes processed since its last call."""
    if total < WORTH_SHOWING or not sys.stderr.isatty():
        yield lambda _count: None
        return
    done = 0

    def shown(_item: object) -> str:
        return f"{human_size(done)} of {human_size(total)}"

    with click.progressbar(
        length=total,
        label=spelled_out(label),
        file=sys.stderr,
        width=24,
        item_show_func=shown,
        update_min_steps=max(1, total // STEPS),
    ) as bar:

        def tick(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count)

        yield tick


@contextmanager
def patience(server: str) -> Generator[None]:
    """Print a message if the server takes long, because a request without an answer times out only after half a minute."""
    if not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(PATIENCE_SECONDS, print_message, [f"waiting for an answer from {server}; Ctrl-C cancels"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
