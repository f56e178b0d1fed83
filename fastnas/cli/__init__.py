"""The command line, one file a command. Commands are loaded when they are called: `fastnas describe` never loads torch."""

from fastnas.cli.main import main

__all__ = ["main"]
