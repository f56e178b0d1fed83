"""The report page: one self-contained HTML file that opens without a network and lets no foreign script run."""

import base64
import hashlib
from importlib import resources

import fastnas
from fastnas.report import plots, sections, summary
from fastnas.report.facts import Facts
from fastnas.report.html import Html, join, script_json, tag


def render(facts: Facts) -> str:
    """The whole page as text."""
    progress = plots.progress(facts)
    figures = {"pareto": plots.pareto(facts), "progress": progress and progress[0], "losses": plots.losses(facts)}
    figures = {name: figure for name, figure in figures.items() if figure}
    parts = [
        sections.pareto(facts, "pareto" in figures),
        sections.front(facts),
        sections.backbones(facts),
        sections.lineage(facts),
        sections.progress(progress[1] if progress else None),
        sections.losses(facts, figures.get("losses")),
        sections.candidates(facts),
        sections.data(facts),
        sections.setting(facts),
    ]
    parts = [part for part in parts if part]
    title = f"{facts.name}: {facts.space} search"
    kicker = tag("p", f"fastnas {facts.space} study", class_="kicker")
    head = tag("header", tag("div", kicker, tag("h1", facts.name), summary.lead(facts)))
    navigation = tag("nav", tag("div", [tag("a", part.title, href=f"#{part.anchor}") for part in parts]))
    body = [tag("section", tag("h2", part.title), part.content, id=part.anchor) for part in parts]
    scripts, policy = _scripts(bool(figures))
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="color-scheme" content="light dark">\n',
            tag("title", title),
            f"\n<style>{_own('style.css')}</style>\n</head>\n<body>\n",
            head,
            navigation,
            tag("main", summary.tiles(facts), *(join("\n", part) for part in body), _footer()),
            f'\n<script type="application/json" id="figures">{script_json(figures)}</script>\n',
            *(f"<script>{script}</script>\n" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _scripts(plotted: bool) -> tuple[list[str], str]:
    """The scripts and a policy that allows exactly these: nothing is loaded, and markup that slipped in cannot run."""
    scripts = [_own("page.js")]
    if plotted:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, get_plotlyjs())
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {' '.join(hashes)}"
    return scripts, policy


def _own(name: str) -> str:
    """Text of a file of this package."""
    return (resources.files("fastnas.report") / name).read_text(encoding="utf-8")


def _footer() -> Html:
    return tag("footer", f"Written by fastnas {fastnas.__version__}. AP is COCO's average precision on a scale from 0 to 1.")
