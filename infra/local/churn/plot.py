"""The diagram of a churn run: backends over time, a panel per path, a line per ending."""

import json
from pathlib import Path
from typing import Any

import matplotlib

from infra.local.churn.plan import ConnectionPath
from infra.local.churn.report import POOL, REPORTS

matplotlib.use("Agg")

from matplotlib import pyplot  # after the backend is chosen

#: Colours for colour-blind readers (Okabe and Ito), and styles that stay visible where lines
#: overlap.
STYLES: dict[str, dict[str, Any]] = {
    "graceful": {"color": "#009E73", "linewidth": 6, "alpha": 0.45},
    "kill": {"color": "#56B4E9", "linewidth": 4},
    "freeze": {"color": "#0072B2", "linewidth": 2},
    "vanish": {"color": "#D55E00", "linewidth": 2, "linestyle": (0, (4, 4))},
    "no_extension": {"color": "#000000", "linewidth": 1.5, "linestyle": (0, (1, 3))},
}
RED = "#B00000"
TITLES = {
    ConnectionPath.DIRECT: "directly to Postgres",
    ConnectionPath.PGBOUNCER: "through PgBouncer",
}


def draw(folder: Path = REPORTS) -> None:
    """Draw `churn.png` from `churn.json`."""
    report = json.loads((folder / "churn.json").read_text())
    limit = report["max_connections"]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for panel, path in zip(panels, ConnectionPath, strict=True):
        _panel(panel, path, [run for run in report["runs"] if run["path"] == path], limit)
    panels[0].set_ylabel("the application's Postgres backends")
    figure.suptitle(
        f"{report['sandboxes']} Lambda sandboxes, replaced {report['deploys']}× by a deploy, "
        f"on a Postgres with max_connections = {limit}"
        + (" (interrupted)" if report.get("partial") else "")
    )
    draft = folder / "churn.png.tmp"
    figure.savefig(draft, dpi=110, format="png")
    pyplot.close(figure)
    draft.replace(folder / "churn.png")


def _panel(panel: Any, path: ConnectionPath, runs: list[dict[str, Any]], limit: int) -> None:
    failed = sum(run["failed"] for run in runs)
    invocations = sum(run["invocations"] for run in runs)
    panel.set_title(f"{TITLES[path]}: {failed:,} of {invocations:,} invocations failed")
    panel.axhline(limit, color="black", linewidth=1)
    panel.text(0.2, limit + 0.2, f"max_connections = {limit}, 3 of them reserved", fontsize=8)
    if path is ConnectionPath.PGBOUNCER:
        panel.axhline(POOL, color="grey", linewidth=1, linestyle=":")
        panel.text(0.2, POOL + 0.2, f"PgBouncer's pool and reserve = {POOL}", fontsize=8)
    for run in runs:
        times, backends, _ = zip(*run["samples"], strict=True)
        label = f"{run['ending']}: {run['failed']} failed"
        panel.plot(times, backends, label=label, **STYLES[run["ending"]])
        if run["failed"]:
            peak = max(backends)
            peak_time = times[backends.index(peak)]
            panel.plot(peak_time, peak, marker="x", markersize=11, markeredgewidth=3, color=RED)
    if failed:
        text = "from here on invocations fail"
        panel.text(peak_time + 1, peak + 0.6, text, color=RED, fontsize=9)
    panel.set_xlabel("seconds")
    panel.set_ylim(0, limit * 1.12)
    panel.set_xlim(left=0)
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.legend(title="how sandboxes end", loc="lower right", fontsize=8, title_fontsize=8)
    panel.grid(alpha=0.25)
