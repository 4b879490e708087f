"""Fitted constants as lines of the catalogue's YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sim.cost.fits import Constants
from sim.hardware.gpu import GPU_FOLDER, SHARED_FITS, Gpu, forget_gpus


def write_fits(gpu: Gpu, folder: Path = GPU_FOLDER) -> Path:
    """Write the constants fitted on `gpu` itself into its catalogue file, with the error beside each; what stood there before
    under `kernels` is replaced."""
    lines = []
    for kind, by_dtype in gpu.kernels.items():
        own = {dtype: fit for dtype, fit in by_dtype.items() if fit.fitted_on == gpu.name}
        if own:
            lines.append(f"  {kind}:")
        for dtype, fit in own.items():
            error = ", ".join(f"{name}: {round(value, 4):g}" for name, value in fit.error.items())
            constants = [_in_microseconds(name, value) for name, value in fit.constants.items()]
            lines.append(f"    {dtype}: {{{', '.join([*constants, f'error: {{{error}}}'])}}}")
    return _replace(folder / f"{gpu.name}.yaml", lines)


def write_shared(shared: Mapping[str, Mapping[str, Constants]], path: Path = SHARED_FITS) -> Path:
    """Write the constants that all measured GPUs share; fixed costs in cycles, but for the launch of an elementwise kernel."""
    lines = []
    for kind, by_dtype in shared.items():
        lines.append(f"  {kind}:")
        form = _in_microseconds if kind == "elementwise" else _in_cycles
        for dtype, constants in by_dtype.items():
            lines.append(f"    {dtype}: {{{', '.join(form(name, value) for name, value in constants.items())}}}")
    return _replace(path, lines)


def _replace(path: Path, lines: list[str]) -> Path:
    head = path.read_text(encoding="utf-8").split("\nkernels:")[0].rstrip()
    path.write_text("\n".join([head, "kernels:", *lines]) + "\n", encoding="utf-8")
    forget_gpus()
    return path


def _in_microseconds(name: str, value: float) -> str:
    if name.endswith("_s"):
        return f"{name[:-2]}: {value / 1e-6:.4g} us"
    return f"{name}: {value:.4g}"


def _in_cycles(name: str, value: float) -> str:
    if name.endswith("_s"):
        return f"{name[:-2]}: {value:.4g} cycles"
    return f"{name}: {value:.4g}"
