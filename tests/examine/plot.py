"""Draws the recipes' results: a square for each recipe and property, coloured by the verdict."""

import json
from pathlib import Path

import matplotlib
from matplotlib.patches import Rectangle

from infra.local.examine.report import REPORTS

matplotlib.use("Agg")

from matplotlib import pyplot  # after the choice of its backend

#: Colours that the colour-blind can distinguish (Okabe and Ito), and a label for print.
STYLES = {"yes": ("#009E73", "yes"), "no": ("#D55E00", "no"), "could not tell": ("#DDDDDD", "?")}


def draw(folder: Path = REPORTS) -> None:
    """Draw `recipes.png` from `recipes.json`."""
    recipes = json.loads((folder / "recipes.json").read_text())["recipes"]
    names = [result["name"] for result in recipes[0]["properties"]]
    figure, axes = pyplot.subplots(figsize=(11, 0.5 * len(recipes) + 2), layout="constrained")
    for row, recipe in enumerate(recipes):
        for column, result in enumerate(recipe["properties"]):
            colour, label = STYLES[result["verdict"]]
            axes.add_patch(Rectangle((column, row), 0.94, 0.9, color=colour))
            text_colour = "black" if label == "?" else "white"
            centre = (column + 0.47, row + 0.45)
            axes.text(*centre, label, ha="center", va="center", color=text_colour)
    axes.set_xlim(0, len(names))
    axes.set_ylim(len(recipes), 0)
    axes.set_xticks([number + 0.47 for number in range(len(names))], names, rotation=40)
    recipe_names = [recipe["name"] for recipe in recipes]
    axes.set_yticks([row + 0.45 for row in range(len(recipes))], recipe_names)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    temporary = folder / "recipes.png.tmp"
    figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
    temporary.replace(folder / "recipes.png")
