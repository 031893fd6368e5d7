"""Figure 3 again from its table: python plot.py [figure3.csv] [figure3.png]."""

import sys
from pathlib import Path

import pandas as pd

from miselbo.commands.experiments.figure3 import draw

if __name__ == "__main__":
    folder = Path(__file__).parent / "results"
    table = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "figure3.csv"
    made = Path(sys.argv[2]) if len(sys.argv) > 2 else folder / "figure3.png"
    draw(pd.read_csv(table), made)
    print(made)
