"""`fastnas status`: what a study has done so far."""

import sys
from pathlib import Path

import click

from fastnas.cli.main import common_options
from fastnas.report import units
from fastnas.report.facts import total_seconds
from fastnas.report.front import Front, find_front, score
from fastnas.report.summary import STATES, count_states
from fastnas.report.table import COLUMNS, front_notes, front_rows, front_table
from fastnas.search.record import FINISHED, RUNNING, Record


@click.command()
@click.argument("study", type=click.Path())
@common_options
def command(study, as_json):
    """What STUDY has done so far: the folder that a search was given as --out. Reads only, also while the search is running."""
    from fastnas.search.study import Study

    with Study.open(study) as opened:
        records, space, wanted = opened.records(), opened.space, opened.config.get("candidates")
    writing = _is_written_to(Path(study))
    front = find_front(records)
    search, full = total_seconds(records)
    counts = count_states(records)
    result = {
        "study": str(study),
        "space": space,
        "searching": writing,
        "candidates_wanted": wanted,
        "states": {state: counts[state] for state in STATES},
        "running": [{"id": record.id, "text": record.blueprint.text} for record in records if record.state == RUNNING],
        "finals": sum(record.final is not None for record in records),
        "seconds": {"search": round(search, 1), "full": round(full, 1)},
        "best_ap": score(front.members[-1], front.full).ap if front.members else None,
        "front_is_final": front.full,
        "front": [_member(record, front.full) for record in front.members],
    }
    if not as_json:
        _print(result, records, front)
    return result


def _member(record: Record, full: bool) -> dict:
    found = score(record, full)
    return {
        "id": record.id,
        "text": record.blueprint.text,
        "ap": found.ap,
        "ap50": found.ap50,
        "ms": found.ms,
        "params": record.params,
        "macs": record.macs,
    }


def _print(result: dict, records: list[Record], front: Front) -> None:
    doing = "a search is running" if result["searching"] else "no search is running"
    click.echo(f"{result['study']}: {result['space']} study, {doing}")
    wanted = f" ({result['candidates_wanted']} trained candidates wanted)" if result["candidates_wanted"] else ""
    states = [f"{count} {state}" for state, count in result["states"].items() if count or state == FINISHED]
    click.echo(f"{', '.join(states)}{wanted}")
    for running in result["running"]:
        stopped = "" if result["searching"] else " (stopped in the middle, --resume trains it again)"
        click.echo(f"running: candidate {running['id']} {running['text']}{stopped}")
    search, full = (units.duration(result["seconds"][kind]) for kind in ("search", "full"))
    click.echo(f"time: {search} search, {full} full trainings ({result['finals']} done)")
    click.echo(f"best AP: {units.ap(result['best_ap'])}\n")
    if sys.stdout.isatty() and front.members:
        _print_rich(front)
    else:
        click.echo(front_table(records))


def _print_rich(front: Front) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[-1] else "right", overflow="fold")
    for row in front_rows(front):
        table.add_row(*map(Text, row))
    console = Console()
    console.print(table)
    for note in front_notes(front):
        console.print(Text(note, style="dim"))


def _is_written_to(folder: Path) -> bool:
    """True while a search holds the study's lock. Only looks: taking the lock could stand in the way of a search that starts."""
    try:
        inode = (folder / ".lock").stat().st_ino
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any("FLOCK" in lock and f":{inode} " in lock for lock in locks)
