"""nar-serve: every file of every store path of a Nix binary cache."""

__version__ = "0.1.0"
