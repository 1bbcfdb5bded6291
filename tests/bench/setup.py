"""What every benchmark gets."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Setup:
    """``directory`` is empty and the benchmark's own. ``size`` and ``large`` are bytes."""

    directory: Path
    runs: int
    size: int
    large: int
