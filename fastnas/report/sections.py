"""The sections of the page. Each returns a `Section`, or None where there is nothing to show."""

import json
from dataclasses import dataclass
from typing import Any

from fastnas.report import colors, plots, units
from fastnas.report.drawing import MEANING, backbone_svg, detector_parts
from fastnas.report.facts import PROBLEMS_SHOWN, Facts
from fastnas.report.front import is_scored
from fastnas.report.html import Html, join, tag
from fastnas.report.lineage import lineage_svg
from fastnas.report.table import front_notes
from fastnas.search.record import FINISHED, Record


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    content: Html


def pareto(facts: Facts, plotted: bool) -> Section:
    if not plotted:
        return Section("pareto", "Accuracy and latency", _hint("Nothing to plot: no candidate has an AP yet."))
    text = "Each dot is a candidate of the search: predicted latency (the bar is the interval) and AP of its short training."
    if facts.finals:
        how = "measured on the whole network" if facts.front.measured else "at the predicted latency, for the device is not here"
        text += f" Diamonds: after full training, {how}; a dotted line leads there from the search."
    return Section("pareto", "Accuracy and latency", join(_hint(text), _plot("pareto")))


def front(facts: Facts) -> Section | None:
    if not facts.front.members:
        return None
    columns = "id|final AP|final AP50|search AP|ms measured|ms predicted|error|params|MACs|epochs|code".split("|")
    rows = []
    for record in facts.shown:
        final = record.final
        error = 100 * (record.predicted_ms / final.latency_ms - 1) if final and final.latency_ms else None
        epochs = f"{units.epochs(record.epochs)} + {units.epochs(final.epochs)}" if final else units.epochs(record.epochs)
        rows.append(
            (
                [
                    record.id,
                    units.ap(final.ap if final else None),
                    units.ap(final.ap50 if final else None),
                    units.ap(record.ap),
                    units.ms(final.latency_ms if final else None),
                    units.ms(record.predicted_ms),
                    units.percent(error),
                    units.params(record.params),
                    units.macs(record.macs),
                    epochs,
                    tag("code", units.code(record.blueprint)),
                ],
                "" if record in facts.front.members else "grey",
            )
        )
    notes = [f"{note[0].upper()}{note[1:]}." for note in front_notes(facts.front)]
    hint = _hint(" ".join(notes), " Error: predicted against measured milliseconds. Epochs: own search training + full training.")
    texts = [
        tag("div", tag("b", record.id), tag("code", record.blueprint.text), _button("copy", data_copy=""), class_="copy")
        for record in facts.shown
    ]
    blueprints = join(tag("h3", "Blueprints"), _hint("One line each, as the command line takes them."), texts)
    return Section("front", "The front", join(hint, _table(columns, rows, left={"code"}), blueprints))


def backbones(facts: Facts) -> Section | None:
    figures, parts = [], {detector_parts(record) for record in facts.shown}
    for record in facts.shown:
        drawing = backbone_svg(record, facts)
        if drawing:
            title = f"Candidate {record.id}: {units.code(record.blueprint)}"
            counts = f"{units.params(record.params)} parameters, {units.macs(record.macs)}MACs"
            caption = counts if len(parts) == 1 else f"{detector_parts(record)}, {counts}"
            figures.append(tag("figure", tag("h3", title), tag("div", drawing, class_="scroll"), tag("figcaption", caption)))
    if not figures:
        return None
    legend = tag("div", [tag("span", tag("i", class_=age), text) for age, text in MEANING.items()], class_="legend")
    same = f" Around all of them: {parts.pop()}." if len(parts) == 1 else ""
    hint = _hint("A box is a block: wider with more channels, taller with higher resolution (square-root scales).", same)
    return Section("backbones", "Backbones of the front", join(hint, legend, tag("div", figures, class_="gallery")))


def lineage(facts: Facts) -> Section | None:
    if not facts.records:
        return None
    aps = [record.ap for record in facts.records if is_scored(record)]
    low, high = colors.scale(aps)
    ramp = ", ".join("#" + "".join(f"{channel:02x}" for channel in color) for color in colors.RAMP)
    shade = tag("i", class_="ramp", style=f"background:linear-gradient(90deg, {ramp})")
    keys = [
        tag("span", f"AP {units.ap(low)} ", shade, units.ap(high)) if aps else None,
        tag("span", tag("i", class_="ring"), "on the front"),
        tag("span", tag("i", class_="none"), "rejected, failed or not finished"),
    ]
    hint = _hint("Who descends from whom, with the AP of the search and what was done to the parent. Details on hover.")
    legend = tag("div", keys, class_="legend")
    return Section("lineage", "Lineage", join(hint, legend, tag("div", lineage_svg(facts), class_="scroll tall")))


def progress(reference: float | None) -> Section | None:
    if reference is None:
        return None
    hint = _hint(
        "Candidates in the order of their ids. Hypervolume: the share of the box from the reference point "
        f"(AP 0, {reference:g} ms: 1.1 times the slowest candidate) to (AP 1, 0 ms) that the front dominates, by search AP and "
        "predicted ms."
    )
    return Section("progress", "Progress of the search", join(hint, _plot("progress")))


def losses(facts: Facts, figure: plots.Figure | None) -> Section | None:
    missing = [record.id for record in facts.records if record.state == FINISHED and facts.metrics[record.id].missing]
    bad = {record.id: facts.metrics[record.id].bad_lines for record in facts.records if facts.metrics[record.id].bad_lines}
    warnings = []
    if bad:
        lines = ", ".join(f"{count} of candidate {id}" for id, count in bad.items())
        warnings.append(tag("p", f"Lines of metrics.jsonl that could not be read and are left out: {lines}.", class_="hint warn"))
    if missing:
        ids = ", ".join(map(str, missing))
        warnings.append(tag("p", f"No metrics.jsonl of finished candidates: {ids}.", class_="hint warn"))
    if not figure:
        return Section("losses", "Losses", join(_hint("No loss has been written."), warnings)) if facts.records else None
    names = [tag("option", name.replace("_", " "), value=name) for name in plots.loss_names(figure)]
    controls = tag(
        "div",
        tag("label", "loss ", tag("select", names, id="loss-part")),
        _button("front and ancestor", data_show="front"),
        _button("all", data_show="all"),
        _button("none", data_show="none"),
        class_="controls",
    )
    hint = _hint("One curve a training, dotted for full trainings. A click in the legend shows or hides a candidate.")
    return Section("losses", "Losses", join(hint, warnings, controls, _plot("losses")))


def candidates(facts: Facts) -> Section | None:
    if not facts.records:
        return None
    columns = "id|state|parent|AP|AP50|ms predicted|params|MACs|epochs|time|images/s|code, operations, reason".split("|")
    rows = [(_candidate(record, facts), "" if record.state == FINISHED else "grey") for record in facts.records]
    hint = _hint("All of them, also those that failed or were rejected. Epochs: own, and in all with those of inherited weights.")
    return Section("candidates", "All candidates", join(hint, _table(columns, rows, left={"state", columns[-1]})))


def _candidate(record: Record, facts: Facts) -> list[Any]:
    speeds = sorted(speed for training in facts.metrics[record.id].trainings.values() for speed in training.images_per_second)
    errors = [training.error for training in facts.metrics[record.id].trainings.values() if training.error]
    told = ["; ".join(record.lineage.operations), record.reason, *(error for error in errors if error not in record.reason)]
    epochs = units.epochs(record.epochs)
    if record.total_epochs > record.epochs:
        epochs += f" ({units.epochs(record.total_epochs)})"
    return [
        record.id,
        tag("span", record.state, class_=f"state {record.state}"),
        units.DASH if record.lineage.parent is None else record.lineage.parent,
        units.ap(record.ap),
        units.ap(record.ap50),
        units.ms(record.predicted_ms),
        units.params(record.params),
        units.macs(record.macs),
        epochs if record.epochs else units.DASH,
        units.duration(record.seconds) if record.seconds else units.DASH,
        f"{speeds[len(speeds) // 2]:.1f}" if speeds else units.DASH,
        join(tag("code", units.code(record.blueprint)), [tag("div", line, class_="under") for line in told if line]),
    ]


def data(facts: Facts) -> Section | None:
    problems = facts.problems
    if problems is None or not (problems.shown or problems.bad_lines):
        return None
    total = sum(problems.counts.values())
    kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(problems.counts.items(), key=lambda item: -item[1]))
    keys = list(dict.fromkeys(key for entry in problems.shown for key in entry))
    rows = [([_cell(entry.get(key)) for key in keys], "") for entry in problems.shown]
    parts = [tag("p", f"{units.count(total, 'problem')} in the data set, each handled by its rule: {kinds}.")]
    if total > PROBLEMS_SHOWN:
        parts.append(_hint(f"The first {PROBLEMS_SHOWN}; all of them are in data_problems.jsonl."))
    if problems.bad_lines:
        parts.append(_hint(f"{units.count(problems.bad_lines, 'line')} of data_problems.jsonl could not be read."))
    return Section("data", "Data problems", join(parts, _table(keys, rows, left=set(keys)) if rows else None))


def setting(facts: Facts) -> Section:
    rows = [([key, _cell(value)], "") for key, value in facts.environment.items()]
    return Section(
        "setting",
        "Setting",
        join(
            tag("h3", "Latency environment"),
            _table(["what", "value"], rows, left={"what", "value"}) if rows else _hint("Not recorded."),
            tag("h3", "Configuration"),
            tag("pre", _yaml(facts.config)),
        ),
    )


def _yaml(config: dict[str, Any]) -> str:
    import yaml

    try:
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()
    except yaml.YAMLError:  # a value that plain YAML cannot say
        return json.dumps(config, indent=1, default=str)


def _cell(value: Any) -> str:
    if value is None:
        return units.DASH
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _table(columns: list[str], rows: list[tuple[list[Any], str]], left: set[str]) -> Html:
    wide = {"code, operations, reason", "detail", "value"}
    kinds = [("wide" if column in wide else None) if column in left else "n" for column in columns]
    head = tag("thead", tag("tr", [tag("th", column, class_=kind) for column, kind in zip(columns, kinds, strict=True)]))
    body = tag(
        "tbody",
        [
            tag("tr", [tag("td", cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)], class_=style or None)
            for cells, style in rows
        ],
    )
    return tag("div", tag("table", head, body), class_="scroll")


def _plot(name: str) -> Html:
    return tag("div", tag("noscript", "This plot needs JavaScript; the tables do not."), id=f"plot-{name}", class_="plot")


def _button(text: str, **attributes: str) -> Html:
    return tag("button", text, type="button", **attributes)


def _hint(*texts: str) -> Html:
    return tag("p", *texts, class_="hint")
