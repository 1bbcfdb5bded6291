"""The parameters of a benchmark."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Setup:
    """The parameters of a benchmark. ``directory`` is a new, empty directory; ``size`` and ``large`` are in bytes."""

    directory: Path
    runs: int
    size: int
    large: int
