"""Where the files that travel with twowalls stand: GPUs, models, topologies, scenarios."""

from __future__ import annotations

from pathlib import Path

from sim.errors import InputError, nearest

_PACKAGE = Path(__file__).resolve().parent
_INSIDE = {"gpus": ("hardware/gpus", "*.yaml"), "models": ("model/models", "*.json")}
_BESIDE = {"topologies": "*.yaml", "scenarios": "**/*.yaml"}
KINDS = (*_INSIDE, *_BESIDE)
"""What can be listed."""


def files(kind: str) -> dict[str, Path]:
    """The catalogue entries of `kind` by name, sorted; the name is the file's name without its suffix, after its folder's.

    Args:
        kind: gpus, models, topologies or scenarios.

    Raises:
        InputError: for any other kind.
    """
    folder, pattern = _folder(kind)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.glob(pattern))}


def resolve(kind: str, name_or_path: str, where: str) -> Path:
    """The file that a catalogue name or a path stands for.

    A catalogue name wins over a file of the same name; a path may be a file or, for models, a folder.

    Args:
        kind: gpus, models, topologies or scenarios.
        where: file and key path of the value, for the error message.

    Raises:
        InputError: neither a catalogue name nor an existing path; the hint has the nearest name.
    """
    entries = files(kind)
    if name_or_path in entries:
        return entries[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    inner = {name.rsplit("/", 1)[-1]: found for name, found in entries.items()}
    if name_or_path in inner:  # the name alone of an entry in a folder
        return inner[name_or_path]
    raise InputError(
        where, f"got '{name_or_path}', which is no entry of {kind} and no existing path", nearest(name_or_path, entries)
    )


def _folder(kind: str) -> tuple[Path, str]:
    if kind in _INSIDE:
        folder, pattern = _INSIDE[kind]
        return _PACKAGE / folder, pattern
    if kind not in _BESIDE:
        raise InputError("KIND", f"got '{kind}'", nearest(kind, KINDS))
    # A wheel carries them in sim/data. In a checkout they stand at the root, which only pyproject.toml tells from a
    # site-packages folder where another distribution may own a folder of that name.
    root = _PACKAGE.parent
    in_checkout = (root / "pyproject.toml").is_file() and not (_PACKAGE / "data" / kind).is_dir()
    return (root / kind if in_checkout else _PACKAGE / "data" / kind), _BESIDE[kind]
