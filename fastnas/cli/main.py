"""The entry point: finds the command, prints errors as one line and turns them into exit codes.

0 done, 1 the work failed, 2 bad usage or bad input, 130 interrupted; a traceback only with --debug.
"""

import errno
import functools
import importlib
import json
import sys
import traceback

import click

import fastnas
from fastnas.errors import FastnasError, InputError

COMMANDS = {
    "search": "Search a space for detectors on the accuracy-latency front.",
    "bench-latency": "Fill the latency table and compare its sums with whole networks.",
    "describe": "Parameters, MACs, blocks and latency of a blueprint.",
    "train": "Train a blueprint on a data set.",
    "eval": "COCO's twelve numbers of trained weights on a data set.",
    "predict": "Detect on an image and draw the boxes.",
    "export": "Write a trained detector as ONNX or as a TensorRT engine.",
    "convert": "Weights from a checkpoint of torchvision, timm or effdet.",
    "table": "Show, verify, merge, export and import latency tables.",
    "report": "Write report.html of a study again.",
    "status": "What a study has done so far.",
    "doctor": "Versions, devices, engines and what the extension was built with.",
}

# Errors of the system that only another name can mend.
WRONG_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EROFS)


class LazyGroup(click.Group):
    """Knows its commands' names and one-line helps without importing them."""

    def list_commands(self, context):
        return list(COMMANDS)

    def get_command(self, context, name):
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"fastnas.cli.{name.replace('-', '_')}").command

    def format_commands(self, context, formatter):
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastnas.__version__, prog_name="fastnas")
def cli():
    """Finds object-detector architectures for your data on your device."""


def common_options(command):
    """Adds --json and --debug. The command gets `as_json`; with --json it returns the one document that goes to stdout."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, everything else on stderr.")
    @click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    @functools.wraps(command)
    def wrapped(*args, as_json, **options):
        result = command(*args, as_json=as_json, **options)
        if as_json:
            click.echo(json.dumps(result, indent=1))

    return wrapped


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        cli.main(arguments, prog_name="fastnas", standalone_mode=False)
        sys.exit(0)
    except click.exceptions.Abort:  # click turns Ctrl-C into this
        print("fastnas: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _explain(error)
        line = " ".join(line.split())
        print("fastnas: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        print("fastnas: interrupted", file=sys.stderr)
        sys.exit(130)


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error."""
    import sqlite3  # only where something failed

    if isinstance(error, InputError):
        return 2, f"error: {error}"
    if isinstance(error, FastnasError):
        return 1, f"error: {error}"
    if isinstance(error, click.UsageError):
        where = f"fastnas {error.ctx.info_name}" if error.ctx and error.ctx.parent else "fastnas"
        return 2, f"error: {error.format_message()} (see '{where} --help')"
    if isinstance(error, click.ClickException):
        return 2, f"error: {error.format_message()}"
    if isinstance(error, PermissionError):
        return 2, f"error: no permission for {error.filename or 'a file'}: check its permissions or name another"
    if isinstance(error, sqlite3.Error):
        return 1, f"error: cannot read or write the database: {error}"
    if isinstance(error, OSError) and error.errno in WRONG_NAME:
        from fastnas.blueprint.show import one_line

        return 2, f"error: {error.strerror}: {one_line(str(error.filename), 200)}: name another file or folder"
    if isinstance(error, OSError):
        return 1, f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
    return 1, f"internal error: {type(error).__name__}: {error} (run again with --debug and report it)"
