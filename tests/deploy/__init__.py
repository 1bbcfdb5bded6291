"""The files of ``deploy/`` are valid for the programs that read them, as far as this can be tested without a network."""
