"""The picture of the recipes: a square for each property of each, by its verdict."""

import json
from pathlib import Path

import matplotlib
from matplotlib.patches import Rectangle

from infra.local.examine.report import REPORTS

matplotlib.use("Agg")

from matplotlib import pyplot  # after the choice of its backend

#: Colours that the colour-blind tell apart (Okabe and Ito), and a sign, for print.
STYLES = {"yes": ("#009E73", "yes"), "no": ("#D55E00", "no"), "could not tell": ("#DDDDDD", "?")}


def draw(folder: Path = REPORTS) -> None:
    """`recipes.png` from `recipes.json`."""
    recipes = json.loads((folder / "recipes.json").read_text())["recipes"]
    names = [each["name"] for each in recipes[0]["properties"]]
    figure, panel = pyplot.subplots(figsize=(11, 0.5 * len(recipes) + 2), layout="constrained")
    for row, recipe in enumerate(recipes):
        for column, each in enumerate(recipe["properties"]):
            colour, sign = STYLES[each["verdict"]]
            square = Rectangle((column, row), 0.94, 0.9, color=colour)
            panel.add_patch(square)
            ink = "black" if sign == "?" else "white"
            panel.text(column + 0.47, row + 0.45, sign, ha="center", va="center", color=ink)
    panel.set_xlim(0, len(names))
    panel.set_ylim(len(recipes), 0)
    panel.set_xticks([number + 0.47 for number in range(len(names))], names, rotation=40)
    panel.set_yticks([row + 0.45 for row in range(len(recipes))], [r["name"] for r in recipes])
    panel.tick_params(length=0)
    panel.set_frame_on(False)
    draft = folder / "recipes.png.tmp"
    figure.savefig(draft, dpi=110, format="png")
    pyplot.close(figure)
    draft.replace(folder / "recipes.png")
