"""What dockerd, and by it the person at the terminal, is told."""


class Refused(Exception):
    """The call can't be done as it is; the message says why, and the next step."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def shown(value: object) -> str:
    """Input in a message: printable, and no longer than a line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
