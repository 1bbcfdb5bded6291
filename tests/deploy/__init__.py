"""The files of ``deploy/``: read by the programs that they are for, as far as that goes without a network."""
