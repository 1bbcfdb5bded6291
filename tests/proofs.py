"""Long-running tests, which have the marker ``proof``. An ordinary test run shortens them, for example to fewer rounds.

``python -m tests.proofs`` runs them at full length. It takes the arguments of pytest.
"""

import sys
from typing import TypeVar

import pytest

T = TypeVar("T")

full = False


def length(short: T, at_full_length: T) -> T:
    """Return the length of a proof (seconds, rounds, examples) in this run."""
    return at_full_length if full else short


def main() -> int:
    return pytest.main(["-m", "proof", "--full-length", "--durations=0", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
