"""``python -m narcore``: the command line."""

from narcore.cli import main

if __name__ == "__main__":
    main()
