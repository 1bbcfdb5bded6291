"""Commands that live outside of narcore, which knows nothing of them: entry points of the group ``nar_serve.commands``.

They are looked for only when there is no command of that name here, or all are listed: it takes reading the metadata of every
package that is installed.
"""

from importlib.metadata import entry_points

import click

GROUP = "nar_serve.commands"


def names() -> list[str]:
    return sorted(entry_points(group=GROUP).names)


def load(name: str) -> click.Command | None:
    """None if there is no such command."""
    for entry_point in entry_points(group=GROUP, name=name):
        command = entry_point.load()
        if isinstance(command, click.Command):
            return command
    return None
