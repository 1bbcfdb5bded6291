"""The proofs that take long: an attack, a hundred kills. The suite runs each in its shortest telling form.

``python -m tests.proofs`` runs them at full length, with the arguments of pytest: the tests with the marker ``proof``.
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
