"""The command `twowalls`: reads arguments, calls what stands below, prints."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sim import __version__
from sim.cli.calibrate import register as register_calibrate
from sim.cli.compare import register as register_compare
from sim.cli.confidence import register as register_confidence
from sim.cli.fabric import register as register_fabric
from sim.cli.look import register as register_look
from sim.cli.run import register as register_run
from sim.cli.studies import register as register_studies
from sim.cli.validate import register as register_validate
from sim.cli.whatif import register as register_whatif
from sim.errors import TwoWallsError

if TYPE_CHECKING:
    from typing_extensions import Buffer

app = typer.Typer(
    name="twowalls",
    help="Predicts how a large language model will serve on a given set of GPUs: does it fit, how fast is a token, and"
    " which wall it hits, memory or communication.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
register_run(app)
register_look(app)
register_fabric(app)
register_compare(app)
register_confidence(app)
register_calibrate(app)
register_validate(app)
register_studies(app)
register_whatif(app)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"twowalls {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point: user errors become one message on standard error and their exit code, never a traceback."""
    output = sys.stdout
    if output is sys.__stdout__ and output is not None and not output.isatty():
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Pipe(1, "w", closefd=False)), output.encoding)
    try:
        app()
    except TwoWallsError as error:
        _refuse(str(error), error.exit_code)
    except OSError as error:
        _refuse(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        _refuse("interrupted", 130)


class _Pipe(io.FileIO):
    """Standard output whose reader may leave early (`| head`).

    What nobody reads is dropped, and the work goes on to its own exit code: files are still written, and the shell does not
    take the reader's leaving for a failed assertion.
    """

    def write(self, data: Buffer, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(data)


def _refuse(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)
