"""The pages and tables that show a study to people. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from fastnas.errors import InputError
from fastnas.files import write_atomic

if TYPE_CHECKING:
    from fastnas.search.study import Study

REPORT = "report.html"


def write_report(study: "Study | Path | str") -> Path:
    """Writes `report.html` into a study and returns its path.

    study: an open study, or the path of its folder. Works for a study that is running, was killed, or has nothing finished.
    Raises InputError for a folder that is no study, and where the page cannot be written.
    """
    from fastnas.report.facts import gather
    from fastnas.report.page import render

    if isinstance(study, (str, Path)):
        from fastnas.search.study import Study

        with Study.open(study) as opened:
            return write_report(opened)
    path = study.folder / REPORT
    page = render(gather(study))
    try:
        write_atomic(path, page)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; make room for it in the study's folder") from None
    return path
