"""The README's first figure: accuracy against bytes, for every method of the command.

python -m minicompress --json comparison.json
python examples/accuracy_against_bytes.py comparison.json [figure.png]
"""

import json
import sys
from pathlib import Path

from _figures import draw

KINDS = {  # the words that tell how a method works, in this order; the rest is a smaller structure
    "dense": ("not compressed", "k", "s"),
    "prune": ("pruned and retrained", "C2", "^"),
    "low rank": ("low rank and retrained", "C1", "D"),
    "int": ("quantized", "C0", "o"),
    "": ("smaller structure", "C4", "v"),
}


def main(comparison, figure="accuracy_against_bytes.png"):
    found = json.loads(Path(comparison).read_text())

    def plot(figure):
        axes, labelled = figure.subplots(), set()
        for row in found["rows"]:
            label, color, marker = next(v for word, v in KINDS.items() if word in row["method"])
            place = row["bytes"], 100 * row["test_accuracy"]
            axes.plot(*place, marker, color=color, label=None if label in labelled else label)
            axes.annotate(
                row["method"], place, (0, 7), textcoords="offset points", ha="center", fontsize=8
            )
            labelled.add(label)
        axes.set(
            xscale="log", xlabel="bytes of the weights", ylabel="accuracy, % of the test images"
        )
        axes.set_title(f"One network, {len(found['rows']) - 1} ways to make it smaller")
        axes.grid(alpha=0.3)
        axes.margins(0.1, 0.12)
        axes.set_xticks(
            [2500, 5000, 10_000, 20_000, 40_000], ["2,500", "5,000", "10,000", "20,000", "40,000"]
        )
        axes.minorticks_off()
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)

    draw(plot, figure, size=(8, 4))


if __name__ == "__main__":
    main(*sys.argv[1:3])
