"""`inside` runs a command in this process: one of its own would load torch for every line."""

import json
from typing import NamedTuple

import pytest

from fastnas.cli.main import main


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def inside(capsys):
    """inside("describe", ...) -> exit code, stdout and stderr."""

    def run(*arguments) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, arguments)))
        return Done(caught.value.code, *capsys.readouterr())

    return run
