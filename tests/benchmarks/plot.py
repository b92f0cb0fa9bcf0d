"""The picture of the benchmarks: warm requests, cold starts, scale."""

from typing import Any

import matplotlib

from infra.local.churn.report import REPORTS
from tests.benchmarks.plan import HANDLERS
from tests.benchmarks.report import by_handler, committed

matplotlib.use("Agg")

from matplotlib import pyplot  # after the choice of its backend

#: Colours that the colour-blind tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#E69F00")


def draw() -> None:
    """`bench.png` from `bench.json`."""
    report = committed()
    figure, panels = pyplot.subplots(1, 3, figsize=(16, 4.4), layout="constrained")
    _bars(
        panels[0],
        "a warm request, p50, ms",
        {
            f"{rtt} ms a round trip": [
                by_handler(report["warm"], rtt_ms=rtt)[name]["p50_ms"] for name in HANDLERS
            ]
            for rtt in (0, 1)
        },
    )
    _bars(
        panels[1],
        "a cold start, CPU, s",
        {
            "compiled" if compiled else "not compiled": [
                by_handler(report["cold"], compiled=compiled)[name]["cpu_s"] for name in HANDLERS
            ]
            for compiled in (True, False)
        },
    )
    scale = [row for row in report["scale"] if row.get("pgbouncers", 1) == 1]
    labels = [f"{row['clients']:,} clients,\n{row['active_clients']} active" for row in scale]
    bars = panels[2].bar(labels, [row["requests_per_s"] for row in scale], color=COLOURS[0])
    panels[2].bar_label(bars, [f"{row['backends']} backends" for row in scale], fontsize=8)
    panels[2].set_title("one PgBouncer, requests a second")
    panels[2].tick_params(axis="x", labelsize=8)
    figure.suptitle("GET /orders/{id}: what it costs")
    draft = REPORTS / "bench.png.tmp"
    figure.savefig(draft, dpi=110, format="png")
    pyplot.close(figure)
    draft.replace(REPORTS / "bench.png")


def _bars(panel: Any, title: str, series: dict[str, list[float]]) -> None:
    width = 0.4
    for number, (label, heights) in enumerate(series.items()):
        places = [place + number * width for place in range(len(heights))]
        bars = panel.bar(places, heights, width, label=label, color=COLOURS[number])
        panel.bar_label(bars, fmt="%.2f", fontsize=8)
    labels = [name.replace("_", "\n") for name in HANDLERS]
    panel.set_xticks([place + width / 2 for place in range(len(HANDLERS))], labels, fontsize=8)
    panel.set_title(title)
    panel.legend(fontsize=8)
