"""``python -m miselbo``: the same as ``python run.py`` in a checkout."""

from miselbo.commands.cli import main

if __name__ == "__main__":
    main()
