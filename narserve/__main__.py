"""``python -m narserve``: the command line."""

from narserve.program import main

if __name__ == "__main__":
    main()
