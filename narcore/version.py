"""The version of the project, which pyproject.toml and CHANGELOG.md repeat."""

__version__ = "0.1.0"
