"""Arguments that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.errors import InputError, TwoWallsError

if TYPE_CHECKING:
    from sim.scenario import Scenario

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a key, such as deployment.tensor_parallel_size=4."),
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes at a time; all cores if not given.")]
ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file or a shipped scenario's name.")
]


_FILES = ("workload.arrivals.path", "workload.lengths.path", "engine.calibration")
_NAMES_OR_FILES = ("model", "cluster.topology", "cluster.gpu")


def read_overrides(settings: Sequence[str] | None) -> dict[str, object]:
    """Values by dotted key; each is read as YAML, so numbers, lists and quantities need no quotes of their own.

    Relative paths start at the current folder, where they were typed; those in a scenario file start at the file's.
    """
    from sim.scenario.loading import parse_yaml

    found: dict[str, object] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise InputError("--set", f"got '{setting}'", "write a key path and a value: engine.max_num_seqs=64")
        found[key.strip()] = _from_here(key.strip(), parse_yaml(f"value: {value}", f"--set {key.strip()}")["value"])
    return found


def _from_here(key: str, value: object) -> object:
    """`value` of `key` with its relative paths, also those of a whole section, as absolute ones."""
    from sim.scenario.fields import looks_like_path

    if isinstance(value, dict):
        return {name: _from_here(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, str) and (key in _FILES or (key in _NAMES_OR_FILES and looks_like_path(value))):
        return str(Path(value).expanduser().absolute())
    return value


_PICTURES = (".png", ".svg", ".pdf")


def picture(path: Path, option: str) -> Path:
    """`path` if a picture can be written there.

    Raises:
        InputError: another suffix, or no such folder.
    """
    if path.suffix.lower() not in _PICTURES:
        raise InputError(option, f"got '{path}'", f"give a file ending in {', '.join(_PICTURES)}")
    return file_to_write(path, option)


def file_to_write(path: Path, option: str) -> Path:
    """`path` if a file can stand there: asked before the work whose answer it is to hold.

    Raises:
        InputError: a folder, or no such folder.
    """
    if not path.parent.is_dir():
        raise InputError(option, f"got '{path}', whose folder does not exist", "make the folder first")
    if path.is_dir():
        raise InputError(option, f"got '{path}', which is a folder", "name a file in it")
    return path


def folder_to_fill(path: Path, option: str) -> Path:
    """`path`, made if it was not there: asked before the work whose answer it is to hold.

    Raises:
        InputError: it is no folder, and cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "give a folder, or the name of one that can be made"
        raise InputError(option, f"got '{path}' ({error.strerror})", hint) from None
    return path


def scenario_files(argument: str) -> list[Path]:
    """The scenario files that an argument names: a file, all of a folder, or a shipped scenario by name."""
    from sim import catalogue

    if not argument.strip():
        raise InputError(
            "SCENARIO", f"got '{argument}', which names nothing", "give a file, a folder, or . for this one"
        )
    path = Path(argument).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
        if not found:
            raise InputError(argument, "is a folder without a scenario", "it should hold files ending in .yaml")
        return found
    return [catalogue.resolve("scenarios", argument, "SCENARIO")]


def load_one(argument: str, settings: Sequence[str] | None = None) -> Scenario:
    """The one scenario that an argument names, with `--set` applied."""
    from sim.scenario import Scenario

    files = scenario_files(argument)
    if len(files) > 1:
        raise InputError(argument, f"holds {len(files)} scenarios", "name one of them")
    return Scenario.load(files[0], read_overrides(settings))


def load_each(arguments: Sequence[str], overrides: dict[str, object]) -> list[tuple[str, Scenario | TwoWallsError]]:
    """(name, scenario or what is wrong with it) of every scenario that the arguments name, in order."""
    from sim.scenario import Scenario

    found: list[tuple[str, Scenario | TwoWallsError]] = []
    for argument in arguments:
        try:
            files = scenario_files(argument)
        except TwoWallsError as error:
            found.append((argument, error))
            continue
        for file in files:
            try:
                found += [(scenario.name, scenario) for scenario in Scenario.load_all(file, overrides)]
            except TwoWallsError as error:
                found.append((file.stem, error))
    return found


def load_all(arguments: Sequence[str], settings: Sequence[str] | None) -> list[Scenario]:
    """Every scenario that the arguments name, with `--set` applied; the first that is wrong is raised."""
    loaded = []
    for _, found in load_each(arguments, read_overrides(settings)):
        if isinstance(found, TwoWallsError):
            raise found
        loaded.append(found)
    return loaded


def print_json(data: Any) -> None:
    """`data` as JSON on standard output."""
    from sim.results.export import to_json

    sys.stdout.write(to_json(data))


def print_json_list(items: Iterable[Any]) -> None:
    """`items` as one JSON list on standard output, written one by one: there may be very many."""
    from sim.results.export import to_json

    before = "[\n"
    for item in items:
        sys.stdout.write(before + to_json(item).rstrip())
        before = ",\n"
    sys.stdout.write("[]\n" if before == "[\n" else "\n]\n")


def say(text: str) -> None:
    """A message beside the answer, on standard error."""
    print(text, file=sys.stderr)
