"""Time of a warm fit beside the number of its parameters, as bench/RESULTS.md has it.

`python docs/pictures/size.py` draws `size.png`.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parents[2] / "bench" / "RESULTS.md"
LOOKS = {
    "warm, ms": ("jaxfit", "o-", "k"),
    "SciPy trf, ms": ("SciPy trf, dense", "s--", "C0"),
    "its sparse way, ms": ("SciPy trf, sparse", "^:", "C2"),
}


def columns(title):
    """The table under a heading, by column."""
    text = RESULTS.read_text().split(f"### {title}\n")[1]
    lines = re.findall(r"^\|(.*)\|$", text.split("\n#")[0], re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return dict(zip(head, zip(*rows, strict=True), strict=True))


def main():
    figure, both = plt.subplots(
        1, 2, figsize=(8, 3.2), layout="constrained", sharey=True
    )
    for axes, title in zip(both, ("peaks", "chain"), strict=True):
        table = columns(title)
        n = [float(value) for value in table["n"]]
        for column, (label, line, colour) in LOOKS.items():
            if column in table:
                times = [float(value) for value in table[column]]
                axes.loglog(n, times, line, color=colour, label=label, ms=4, lw=1)
        axes.set(title=title, xlabel="parameters n")
        axes.grid(alpha=0.3)
    both[0].set_ylabel("ms a fit")
    both[1].legend(frameon=False, fontsize=8)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
