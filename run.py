"""Train and measure an ensemble: python run.py model=nvae ensemble.size=5 (README.md lists the commands)."""

from miselbo.commands.cli import main

if __name__ == "__main__":
    main()
