"""`fastnas report`: writes report.html of a study again."""

import click

from fastnas.cli.main import common_options


@click.command()
@click.argument("study", type=click.Path())
@common_options
def command(study, as_json):
    """Write report.html of STUDY again, the folder that a search was given as --out. A search may be running in it."""
    from fastnas.report import write_report

    path = write_report(study)
    if not as_json:
        click.echo(path)
    return {"study": str(study), "report": str(path)}
