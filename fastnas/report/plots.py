"""Plotly figures as plain data (JSON of plotly.js). Colors are names of CSS variables, which the page's script looks up.

plotly.js reads a little HTML in texts, so everything from the study is escaped here too.
"""

from html import escape
from typing import Any

from fastnas.report import units
from fastnas.report.facts import Facts
from fastnas.report.front import hypervolume, is_scored
from fastnas.report.metrics import TOTAL
from fastnas.search.record import Record

Figure = dict[str, Any]


def pareto(facts: Facts) -> Figure | None:
    """AP over milliseconds of all candidates; None while nothing has an AP."""
    scored = [record for record in facts.records if is_scored(record)]
    if not scored:
        return None
    ancestor = facts.ancestor
    on_front = {record.id for record in facts.searched}
    special = on_front | ({ancestor.id} if ancestor else set())
    others = [record for record in scored if record.id not in special]
    finals = facts.finals
    right = max([record.predicted_ms for record in scored] + [record.latency_ms for record in finals])
    data = [_candidates(others, "other candidates", {"color": "var(--dot)", "size": 8, "opacity": 0.75})] if others else []
    data = [_intervals(scored), *data, _step(facts.searched, right), *_connections(finals)]
    members = [record for record in facts.searched if record is not ancestor]
    if members:
        data.append(_candidates(members, "front of the search", {"color": "var(--front)", "size": 10}, labels=True))
    if ancestor and is_scored(ancestor):
        marker = {"color": "var(--ancestor)", "size": 12, "symbol": "square", "line": {"width": 1.5, "color": "var(--surface)"}}
        data.append(_candidates([ancestor], "ancestor", marker, labels=True))
    if finals:
        data.append(_finals(finals))
    layout = _layout("latency in ms", "AP", 470)
    layout["yaxis"]["tickformat"] = ".2f"
    left = min([record.predicted_ms for record in scored] + [record.latency_ms for record in finals])
    if (limit := facts.max_latency) is not None and limit <= 2 * right:  # a limit far away would squeeze the dots together
        margin = 0.06 * (max(right, limit) - left)
        layout["xaxis"]["range"] = [left - margin, max(right, limit) + margin]
        style = {"color": "var(--bad)", "width": 1.5, "dash": "dash"}
        layout["shapes"] = [{"type": "line", "x0": limit, "x1": limit, "yref": "paper", "y0": 0, "y1": 1, "line": style}]
        layout["annotations"] = [_note(f"limit {limit:g} ms", limit, 1.0, xanchor="left", textangle=-90, yanchor="top")]
    return {"data": data, "layout": layout}


def progress(facts: Facts) -> tuple[Figure, float] | None:
    """Best AP and hypervolume over the number of finished candidates, and the reference milliseconds of the hypervolume."""
    scored = [record for record in facts.records if is_scored(record)]
    if not scored:
        return None
    reference = round(1.1 * max(record.predicted_ms for record in scored), 2)
    numbers = list(range(1, len(scored) + 1))
    best, volumes, seen = [], [], []
    for record in scored:
        best.append(max([record.ap, *best[-1:]]))
        seen.append((record.ap, record.predicted_ms))
        volumes.append(round(hypervolume(seen, reference), 6))
    names = [f"candidate {record.id}" for record in scored]
    dots = {"color": "var(--dot)", "size": 7}
    line = {"color": "var(--front)", "width": 2, "shape": "hv"}
    hover = "%{text}<br>%{y:.3f}<extra>%{fullData.name}</extra>"
    common = {"type": "scatter", "x": numbers, "text": names, "hovertemplate": hover}
    data = [
        {**common, "y": [record.ap for record in scored], "name": "AP", "mode": "markers", "marker": dots},
        {**common, "y": best, "name": "best AP so far", "mode": "lines", "line": line},
        {**common, "y": volumes, "name": "hypervolume", "mode": "lines", "line": line, "yaxis": "y2", "showlegend": False},
    ]
    layout = _layout("finished candidates", "AP", 420)
    layout["yaxis"] |= {"domain": [0.46, 1], "tickformat": ".2f"}
    layout["yaxis2"] = {**_axis("hypervolume"), "domain": [0, 0.36]}
    layout["xaxis"] |= {"anchor": "y2", "rangemode": "tozero", "range": [0.5, len(scored) + 0.5]}
    if len(scored) <= 12:
        layout["xaxis"]["dtick"] = 1
    return {"data": data, "layout": layout}, reference


def losses(facts: Facts) -> Figure | None:
    """One curve a training. `parts` holds, for every curve, the y values of each loss; the page switches between them."""
    shown = list(dict.fromkeys(record.id for record in [*facts.shown, facts.ancestor] if record))
    order = [*shown, *(record.id for record in facts.records if record.id not in shown)]
    colors = {id: f"var(--series-{index % 10})" for index, id in enumerate(order)}  # what is shown first gets different ones
    data, parts = [], []
    for record in facts.records:
        for training in facts.metrics[record.id].trainings.values():
            if not any(value is not None for value in training.losses[TOTAL]):
                continue
            full = training.phase != "search"
            name = f"{record.id} {training.phase}"
            trace = {
                "type": "scatter",
                "mode": "lines" if len(training.epochs) > 1 else "markers",
                "x": training.epochs,
                "y": training.losses[TOTAL],
                "name": escape(name),
                "legendgroup": str(record.id),
                "line": {"width": 1.8, "dash": "dot" if full else "solid", "color": colors[record.id]},
                "hovertemplate": "epoch %{x:.2f}, %{y:.3f}<extra>%{fullData.name}</extra>",
                "visible": True if record.id in shown else "legendonly",
                "meta": {"shown": record.id in shown},
            }
            trace["marker"] = {"color": trace["line"]["color"]}
            data.append(trace)
            parts.append(training.losses)
    if not data:
        return None
    layout = _layout("epoch of this training", "loss", 440)
    layout |= {"hovermode": "closest"}
    layout["legend"] = {"orientation": "v", "x": 1.02, "y": 1, "font": {"size": 11}}
    layout["xaxis"]["rangemode"] = layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout, "parts": parts}


def loss_names(figure: Figure) -> list[str]:
    """Names of all losses in a figure of `losses`, the total first."""
    names = {name: None for part in figure["parts"] for name in part}
    return [TOTAL, *sorted(name for name in names if name != TOTAL)]


def _candidates(records: list[Record], name: str, marker: dict, labels: bool = False) -> dict:
    marker = {"line": {"width": 1, "color": "var(--surface)"}, **marker}
    return {
        "type": "scatter",
        "mode": "markers+text" if labels else "markers",
        "name": name,
        "x": [record.predicted_ms for record in records],
        "y": [record.ap for record in records],
        "marker": marker,
        "text": [str(record.id) for record in records],
        "textposition": "bottom right",
        "textfont": {"size": 11, "color": "var(--muted)"},
        "customdata": [_hover(record) for record in records],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _intervals(records: list[Record]) -> dict:
    """The intervals of the predictions, as a trace of its own so that they lie under everything else."""
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [_beyond(record.high_ms, record.predicted_ms) for record in records],
        "arrayminus": [_beyond(record.predicted_ms, record.low_ms) for record in records],
        "thickness": 1,
        "width": 0,
        "color": "var(--interval)",
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [record.predicted_ms for record in records],
        "y": [record.ap for record in records],
        "error_x": bars,
        "marker": {"size": 1, "color": "var(--interval)"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _step(front: list[Record], right: float) -> dict:
    """What the front attains: at each latency the best AP that is no slower."""
    xs, ys = [record.predicted_ms for record in front], [record.ap for record in front]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "what the search attains",
        "x": [*xs, right],
        "y": [*ys, ys[-1]],
        "line": {"shape": "hv", "color": "var(--front)", "width": 1.8},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _connections(finals: list[Record]) -> list[dict]:
    """Lines from the search's point of a candidate to the one after its full training."""
    pairs = [record for record in finals if is_scored(record)]
    if not pairs:
        return []
    xs = [x for record in pairs for x in (record.predicted_ms, record.latency_ms, None)]
    ys = [y for record in pairs for y in (record.ap, record.final.ap, None)]
    line = {"color": "var(--final)", "width": 1.2, "dash": "dot"}
    return [{"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "hoverinfo": "skip", "showlegend": False}]


def _finals(finals: list[Record]) -> dict:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "after full training" + ", measured" * all(record.final.latency_ms is not None for record in finals),
        "x": [record.latency_ms for record in finals],
        "y": [record.final.ap for record in finals],
        "marker": {"color": "var(--final)", "size": 12, "symbol": "diamond", "line": {"width": 1, "color": "var(--surface)"}},
        "text": [str(record.id) for record in finals],
        "textposition": "top center",
        "textfont": {"size": 11, "color": "var(--muted)"},
        "customdata": [_hover(record) for record in finals],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _hover(record: Record) -> str:
    lines = [
        f"<b>candidate {record.id}</b>",
        escape(units.code(record.blueprint)),
        f"search: AP {units.ap(record.ap)}, AP50 {units.ap(record.ap50)} after {units.epochs(record.epochs)} epochs",
        f"predicted {units.ms(record.predicted_ms)} ms ({units.ms(record.low_ms)} to {units.ms(record.high_ms)})",
    ]
    if final := record.final:
        accuracy = f"AP {units.ap(final.ap)}, AP50 {units.ap(final.ap50)}"
        time = "" if final.latency_ms is None else f", measured {units.ms(final.latency_ms)} ms"
        lines.append(f"full training: {accuracy}{time}")
    lines.append(f"{units.params(record.params)} parameters, {units.macs(record.macs)}MACs")
    if record.lineage.parent is not None:
        operations = escape("; ".join(record.lineage.operations)) or "no operation noted"
        lines.append(f"from {record.lineage.parent}: {operations}")
    return "<br>".join(lines)


def _beyond(far: float, near: float) -> float:
    return far - near if units.known(far) and units.known(near) and far > near else 0.0


def _axis(title: str) -> dict:
    return {
        "title": {"text": title, "standoff": 10},
        "gridcolor": "var(--grid)",
        "linecolor": "var(--faint)",
        "zeroline": False,
        "automargin": True,
    }


def _layout(x: str, y: str, height: int) -> dict:
    hover = {"bgcolor": "var(--surface)", "bordercolor": "var(--faint)", "font": {"color": "var(--text)"}, "align": "left"}
    return {
        "xaxis": _axis(x),
        "yaxis": _axis(y),
        "height": height,
        "margin": {"l": 56, "r": 20, "t": 36, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12.5, "color": "var(--text)"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": hover,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--faint)", "activecolor": "var(--muted)"},
        "uirevision": "kept",
    }


def _note(text: str, x: float, y: float, **more) -> dict:
    font = {"size": 11, "color": "var(--bad)"}
    return {"text": text, "x": x, "y": y, "yref": "paper", "showarrow": False, "font": font, **more}
