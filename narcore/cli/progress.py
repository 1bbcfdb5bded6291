"""Progress bars: on standard error, and only on a terminal.

They are click's: one line that counts bytes is all that is needed, and rich would bring three packages along for it.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from narcore.cli.out import spelled_out
from narcore.sizes import human_size

Tick = Callable[[int], None]

# Below, it is done before anybody could read the bar.
WORTH_SHOWING = 1 << 20
STEPS = 500


@contextmanager
def progress(label: str, total: int) -> Generator[Tick]:
    """A bar for ``total`` bytes; the function says how many more have been dealt with."""
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
