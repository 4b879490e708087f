"""The command `twowalls`: reads arguments, calls what stands below, prints."""

from __future__ import annotations

import sys

import typer

from sim.cli.compare import register as register_compare
from sim.cli.confidence import register as register_confidence
from sim.cli.fabric import register as register_fabric
from sim.cli.look import register as register_look
from sim.cli.measure import register as register_measure
from sim.cli.run import register as register_run
from sim.cli.studies import register as register_studies
from sim.cli.whatif import register as register_whatif
from sim.errors import TwoWallsError

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
register_measure(app)
register_studies(app)
register_whatif(app)


def main() -> None:
    """The entry point: user errors become one message on standard error and their exit code, never a traceback."""
    try:
        app()
    except TwoWallsError as error:
        _refuse(str(error), error.exit_code)
    except OSError as error:
        _refuse(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        _refuse("interrupted", 130)


def _refuse(message: str, exit_code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)
