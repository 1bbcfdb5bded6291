"""The commands: one module per command, with a function of the same name, and modules for ``--status``."""
