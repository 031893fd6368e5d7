"""Figure 2 again from the run folders of experiment=table2: python plot.py <run_dir> [figure2.png]."""

import sys
from pathlib import Path

from miselbo.commands.experiments.table2 import SIZES, draw

if __name__ == "__main__":
    run_dir = Path(sys.argv[1])
    made = Path(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "results" / "figure2.png")
    draw({f"{target}-shipped": run_dir / f"{target}-shipped" for target in SIZES}, made)
    print(made)
