"""The report's interactive page: one file that opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from benchmarks.compare import Group
from benchmarks.pictures import FRONT, MARKERS, PANELS, families, left_out, looks, wide

if TYPE_CHECKING:
    import plotly.graph_objects as go

HTML = {"full_html": False, "include_plotlyjs": False, "config": {"responsive": True, "displaylogo": False}}
XS = {
    "peak_mib": "MiB held (peak)", "peak_frames": "frames held (peak)",
    "frames": "frames held (mean)", "tokens": "tokens attended (mean)", "peak_tokens": "tokens attended (peak)",
    "frame_ms": "ms a frame",
}  # fmt: skip
YS = {
    "jf": "J&F, %", "j": "J, %", "f": "F, %", "j_last": "J over the last quarter, %", "j_decay": "J decay, points",
    "vs_stock": "J&F minus stock, points", "recovery": "recovery, %", "false_masks": "false masks while absent, %",
}  # fmt: skip
BARRED = ("jf", "vs_stock")
"""Figures that intervals are known of."""


def write_page(path: Path, pages: Sequence[Mapping[str, Any]]) -> None:
    """Write the page: a plot whose axes can be chosen, the table, worst and best cases, and every run's videos.

    Args:
        path: The file.
        pages: One a group: its "group", the cells of its "table", its "rows" of figures, "videos" with J&F by run
            and video, and "pictures" of worst and best cases, whose files lie in "folder"/worst and /best.
    """
    from plotly.offline import get_plotlyjs  # here, so that worker processes start without it

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.jinja")
    shown = [
        {**page, "plot": plot(page["group"], page["rows"]).to_html(**HTML)}
        | {"note": left_out(page["group"].ranked), "cases": _pictures(page)}
        | {"details": [_details(page, row["method"]) for row in page["rows"]]}
        for page in pages
    ]
    path.write_text(template.render(pages=shown, plotly=get_plotlyjs()))


def _details(page: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return a run's J&F by video beside stock's, worst first."""
    ours, theirs = page["videos"][method], page["videos"].get("stock", {})
    rows = [(name, jf, theirs.get(name), jf - theirs[name] if name in theirs else None) for name, jf in ours.items()]
    return {"method": method, "rows": sorted(rows, key=lambda row: row[3] or 0.0)}


def _pictures(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return worst cases, then best ones, with their pictures."""
    return [
        {**case, "src": base64.b64encode((page["folder"] / kind / case["file"]).read_bytes()).decode()}
        for kind in ("worst", "best")
        for case in page["pictures"]
        if case["kind"] == kind
    ]


def plot(group: Group, rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Return the ranked runs as points, a trace a family, with a choice of axes; for each x a line joins the front."""
    import plotly.graph_objects as go

    ranked = {row["method"]: row for row in rows if not row["lacking"]}
    named = families(group.ranked)
    figure = go.Figure()
    members = []
    for family, look in sorted(looks(named.values()).items(), key=lambda item: item[0] in FRONT):
        labels = [label for label in ranked if named[label] == family]
        members.append(labels)
        filled = {"symbol": MARKERS[look.marker], "size": 11, "line": {"width": 1, "color": "white"}}
        hollow = {"symbol": f"{MARKERS[look.marker]}-open", "size": 20, "line": {"width": 2.5}}
        figure.add_scatter(
            mode="markers",
            name=family,
            marker={"color": look.colour, **(hollow if look.area else filled)},
            text=[f"{label}<br>J&F {ranked[label]['jf']:.1f}{_gain(ranked[label])}" for label in labels],
            hovertemplate="%{text}<br>%{y:.4g}, %{x:.4g}<extra></extra>",
            legendrank=1 if family in FRONT else 2,
            error_y=_bars([ranked[label] for label in labels], look.colour),
        )
    points = len(members)
    for x in PANELS:
        front = (label for label in ranked if x in ranked[label]["front"].split())
        members.append(sorted(front, key=lambda label: ranked[label][x]))
        figure.add_scatter(mode="lines", line_color="#9aa0ab", name="front of J&F", hoverinfo="skip")

    def choices(axis: str, titles: Mapping[str, str]) -> list[dict[str, Any]]:
        buttons = []
        for key, title in titles.items():
            values = [[ranked[label][key] for label in labels] for labels in members]
            layout = {f"{axis}axis.title.text": title}
            data: dict[str, Any] = {axis: values}
            if axis == "y":
                data["error_y.visible"] = [key in BARRED and i < points for i in range(len(members))]
            if axis == "x":
                known = [value for labels in values for value in labels if value is not None]
                layout["xaxis.type"] = "log" if known and wide(known) else "linear"
                data["visible"] = [i < points or key == list(PANELS)[i - points] for i in range(len(members))]
            buttons.append({"label": title, "method": "update", "args": [data, layout]})
        return buttons

    xs, ys = choices("x", XS), choices("y", YS)
    for i, trace in enumerate(figure.data):
        (x, _), (y, _) = xs[0]["args"], ys[0]["args"]
        trace.update(x=x["x"][i], y=y["y"][i], visible=x["visible"][i])
    menus = [{"buttons": made, "x": x, "y": 1.12, "xanchor": "left"} for made, x in ((ys, 0), (xs, 0.4))]
    figure.update_layout(template="plotly_white", height=560, margin={"t": 70, "r": 10}, updatemenus=menus)
    figure.update_xaxes(title_text=XS["peak_mib"], type=xs[0]["args"][1]["xaxis.type"])
    return figure.update_yaxes(title_text=YS["jf"]).update_layout(legend={"orientation": "h", "y": -0.15})


def _bars(rows: Sequence[Mapping[str, Any]], colour: str) -> dict[str, Any]:
    """Return the 95 % intervals of the paired differences from stock as bars around the points."""
    reach = [
        (row["high"] - row["vs_stock"], row["vs_stock"] - row["low"]) if row["low"] is not None else (0, 0)
        for row in rows
    ]
    up, down = ([ends[side] for ends in reach] for side in (0, 1))
    return {"array": up, "arrayminus": down, "symmetric": False, "thickness": 1, "width": 3, "color": colour}


def _gain(row: Mapping[str, Any]) -> str:
    if row["vs_stock"] is None:
        return ""
    shown = "" if row["low"] is None else f" ({row['low']:+.1f} to {row['high']:+.1f})"
    return f", {row['vs_stock']:+.1f} from stock{shown}"
