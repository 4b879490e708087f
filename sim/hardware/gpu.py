"""GPUs: what the datasheet prints, what the driver shows, and the constants fitted to measured kernels.

One YAML file a GPU in `gpus/`; every number stands there with its unit and its source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sim.errors import InputError, nearest
from sim.hardware.power import loaded_clock
from sim.units import parse

GPU_FOLDER = Path(__file__).parent / "gpus"
SHARED_FITS = Path(__file__).parent / "shared_fits.yaml"
"""Constants that all measured GPUs share, for those that nobody measured."""
WITHOUT_BF16 = range(60, 80)
"""CUDA compute capabilities x 10 whose tensor cores take 16 bits as fp16 only (CUDA C++ programming guide)."""
MEMORY_LEEWAY = 0.1
"""By how much a stated memory may miss the printed one: GB for GiB, or what an early datasheet said (192 GB of a B200's 180)."""
_NO_OTHER_GPU = frozenset(
    {
        "nvidia",
        "amd",
        "instinct",
        "geforce",
        "tesla",
        "gpu",
        "gpus",
        "dgx",
        "hgx",
        "hbm",
        "hbm2",
        "hbm2e",
        "hbm3",
        "hbm3e",
    }
    | {"tensor", "core", "generation", "server", "workstation", "edition", "node", "oam"}
)
"""Words beside a GPU's name that say nothing of which it is."""
ALL_MEASURED = "all measured GPUs"
"""Where a GPU's constants come from if none of its own silicon was measured."""


@dataclass(frozen=True, slots=True)
class KernelFit:
    """Constants of one kernel kind and dtype, as `sim/cost` names them."""

    constants: Mapping[str, float]
    """Seconds (names end in `_s`) and dimensionless fractions of the printed peaks."""
    fitted_on: str
    """The GPU whose measured kernels they were fitted to."""
    error: Mapping[str, float]
    """How well the fit meets those measurements, as fractions: `mape` on the `rows` that serving uses, `mape_all` on
    `rows_all`, `mape_beyond_host` on those whose kernels the test bench's host did not hide; empty if nobody measured."""


KernelFits = Mapping[str, Mapping[str, KernelFit]]
"""Fits by kernel kind (gemm, decode_attention, ...), then by dtype."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    vendor: str
    memory_bytes: float
    """Printed size, GB as 1e9 bytes: the `nominal` accounting."""
    visible_memory_bytes: float
    """What CUDA or HIP shows as total: the `engine` accounting."""
    hbm_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    """Dense tensor peak, no sparsity, by arithmetic: bf16, fp8, int8, fp4 (NVIDIA's) or mxfp4 (AMD's)."""
    sm_count: int
    """Streaming multiprocessors, or compute units on AMD."""
    sm_version: int
    """CUDA compute capability x 10 (80, 90, 100, ...); 0 where there is none."""
    l2_bytes: float
    boost_hz: float
    pcie_bytes_per_s: float
    """To the host, one direction."""
    link_bytes_per_s: float
    """All NVLink or Infinity Fabric ports together, one direction; 0 without."""
    power_w: float
    idle_power_w: float | None
    kernels: KernelFits
    fitted_on: str
    """Whose measurements the kernel constants come from: its own, those of the same silicon, or `ALL_MEASURED` together."""
    sources: Mapping[str, str] = field(default_factory=dict)
    loaded_clock: float = 1.0
    """Share of the boost clock that its power leaves busy tensor cores (`sim/hardware/power.py`)."""

    @property
    def origin(self) -> str:
        """In words, where the rates of its kernels come from."""
        if self.fitted_on == self.name:
            return "kernel rates fitted to its own measured kernels"
        origin = f"nobody measured its kernels; rates are those of {self.fitted_on} on its datasheet"
        if self.loaded_clock < 1.0:
            origin += f", whose {self.power_w:g} W leave what computes {self.loaded_clock:.2f} of the boost clock"
        if self.sm_version in WITHOUT_BF16:
            origin += "; it multiplies no bf16, so 16 bits are taken to be fp16"
        return origin


class _Sourced(BaseModel):
    model_config = ConfigDict(extra="forbid")
    value: str | int | float
    source: str


class _FitFile(BaseModel):
    """The constants of one fit: a text is a time with its unit, a number has no dimension."""

    model_config = ConfigDict(extra="allow")
    error: dict[str, float] = {}
    source: str | None = None


class _GpuFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    vendor: str
    aliases: list[str] = []
    memory: _Sourced
    visible_memory: _Sourced
    hbm_bandwidth: _Sourced
    flops: dict[str, _Sourced]
    sm_count: _Sourced
    sm_version: _Sourced
    l2: _Sourced
    boost_clock: _Sourced
    pcie_bandwidth: _Sourced
    link_bandwidth: _Sourced
    power: _Sourced
    idle_power: _Sourced | None = None
    fitted_on: str = ALL_MEASURED
    kernels: dict[str, dict[str, _FitFile]] = {}


def gpu_names() -> list[str]:
    """Names of the GPUs in the catalogue, sorted."""
    return sorted(path.stem for path in GPU_FOLDER.glob("*.yaml"))


@lru_cache(maxsize=64)
def load_gpu(name: str) -> Gpu:
    """The GPU called `name`: a catalogue name, or one of the many ways people write it ("A100-SXM4-80GB", "NVIDIA H200").

    Raises:
        InputError: no GPU of the catalogue is called so, or its file is wrong.
    """
    key = gpu_name(name)
    file = _read(key)
    where = f"gpus/{key}.yaml"

    def quantity(item: _Sourced, dimension: str, field_name: str) -> float:
        return parse(item.value, dimension, f"{where}: {field_name}")

    flops_per_s = {kind: quantity(item, "flops_per_s", f"flops.{kind}") for kind, item in file.flops.items()}
    sm_version, power_w = int(file.sm_version.value), quantity(file.power, "w", "power")
    return Gpu(
        name=file.name,
        vendor=file.vendor,
        memory_bytes=quantity(file.memory, "bytes", "memory"),
        visible_memory_bytes=quantity(file.visible_memory, "bytes", "visible_memory"),
        hbm_bytes_per_s=quantity(file.hbm_bandwidth, "bytes_per_s", "hbm_bandwidth"),
        flops_per_s=flops_per_s,
        sm_count=int(file.sm_count.value),
        sm_version=sm_version,
        l2_bytes=quantity(file.l2, "bytes", "l2"),
        boost_hz=quantity(file.boost_clock, "hz", "boost_clock"),
        pcie_bytes_per_s=quantity(file.pcie_bandwidth, "bytes_per_s", "pcie_bandwidth"),
        link_bytes_per_s=quantity(file.link_bandwidth, "bytes_per_s", "link_bandwidth"),
        power_w=power_w,
        idle_power_w=None if file.idle_power is None else quantity(file.idle_power, "w", "idle_power"),
        kernels=_kernel_fits(file),
        fitted_on=file.fitted_on,
        sources=_sources(file),
        loaded_clock=loaded_clock(sm_version, power_w, flops_per_s["bf16"]),
    )


def _normal(name: str) -> str:
    """`name` without case, vendor and punctuation: "NVIDIA A100-SXM4-80GB" -> "a100sxm480gb"."""
    return re.sub(
        r"[^a-z0-9]", "", re.sub(r"\b(nvidia|amd|instinct|geforce|tesla)\b", "", name.lower().replace("_", " "))
    )


def _words(name: str) -> frozenset[str]:
    """The parts of `name` in whatever order, without those that name no other GPU: "8x H100 80G SXM5" -> {h100, 80gb, sxm}."""
    text = re.sub(r"\b\d+\s*x\s+|\b\d+x(?=[a-z])|\bx\s?\d+$", "", name.lower().replace("_", " "))
    text = re.sub(r"(\d+)\s?(?:gb|gib|g)\b", r"\1gb", text)
    return frozenset(re.sub(r"^sxm\d$", "sxm", part) for part in re.findall(r"[a-z0-9]+", text)) - _NO_OTHER_GPU


@lru_cache(maxsize=1)
def _aliases() -> Mapping[str, str]:
    return {_normal(text): key for text, key in _written()}


@lru_cache(maxsize=1)
def _alias_words() -> Mapping[frozenset[str], str]:
    return {_words(text): key for text, key in _written()}


def _written() -> Iterator[tuple[str, str]]:
    """Every name and alias of the catalogue, with the GPU that it means."""
    return ((text, key) for key in gpu_names() for text in (key, *_read(key).aliases))


def _by_words(name: str) -> str | None:
    """The GPU whose name has the words of `name`; a size of memory that no name states must be about that of the GPU."""
    words, known = _words(name), _alias_words()
    if words in known:
        return known[words]
    sizes = {word for word in words if re.fullmatch(r"\d+gb", word)}
    key = known.get(words - sizes)
    if key is None or len(sizes) != 1:
        return None
    stated_bytes = float(sizes.pop().removesuffix("gb")) * 1e9
    printed_bytes = parse(_read(key).memory.value, "bytes", f"gpus/{key}.yaml: memory")
    return key if abs(stated_bytes / printed_bytes - 1) < MEMORY_LEEWAY else None


def gpu_name(name: str, where: str = "gpu") -> str:
    """The catalogue's name of the GPU that is called `name`.

    Args:
        where: file and key path that names it, for the error message.

    Raises:
        InputError: no GPU of the catalogue is called so.
    """
    if name in gpu_names():  # the files of all the others need not be read for their aliases
        return name
    aliases = _aliases()
    # remarks such as "(DGX)", "(4x)" or "+ CX7 IB" say nothing of the GPU itself, unless an alias says otherwise
    bare = re.sub(r"\(.*?\)|\+.*$", "", name)
    for text in (name, bare):
        if _normal(text) in aliases:
            return aliases[_normal(text)]
    for text in (name, bare):
        found = _by_words(text)
        if found is not None:
            return found
    raise InputError(where, f"got '{name}', which is not in the catalogue", nearest(bare.strip().lower(), gpu_names()))


@lru_cache(maxsize=64)
def _read(key: str) -> _GpuFile:
    try:
        return _GpuFile.model_validate(_load(GPU_FOLDER / f"{key}.yaml"))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InputError(f"gpus/{key}.yaml: {path}", f"got {first['input']!r}: {first['msg']}") from None


@lru_cache(maxsize=1)
def _read_shared() -> Mapping[str, Mapping[str, _FitFile]]:
    kernels = _load(SHARED_FITS)["kernels"]
    return {kind: {dtype: _FitFile(**fit) for dtype, fit in fits.items()} for kind, fits in kernels.items()}


def _load(path: Path) -> Any:
    """The content of a file of ours, which needs no error messages, by libyaml where PyYAML has it: ten times faster."""
    import yaml

    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def forget_gpus() -> None:
    """Read every file of the catalogue anew when it is next asked for."""
    for cache in (load_gpu, _read, _read_shared, _aliases, _alias_words):
        cache.cache_clear()


def shared_kernels(gpu: Gpu) -> KernelFits:
    """The constants that all measured GPUs share, as they are on `gpu`."""
    return _shared_fits(gpu.boost_hz)


def _shared_fits(boost_hz: float) -> dict[str, dict[str, KernelFit]]:
    return {
        kind: {dtype: _fit(fit, ALL_MEASURED, boost_hz, None, f"{kind}.{dtype}") for dtype, fit in by_dtype.items()}
        for kind, by_dtype in _read_shared().items()
    }


def _kernel_fits(file: _GpuFile) -> KernelFits:
    """The shared constants, over them those of the same silicon, over them the file's own."""
    boost_hz = _boost_hz(file)
    merged = _shared_fits(boost_hz)
    relatives = [] if file.fitted_on in (file.name, ALL_MEASURED) else [_read(file.fitted_on)]
    for source in [*relatives, file]:
        slower = _boost_hz(source) / boost_hz
        for kind, by_dtype in source.kernels.items():
            for dtype, fit in by_dtype.items():
                inherited = merged.get(kind, {}).get(dtype)
                own = _fit(fit, source.name, _boost_hz(source), inherited, f"{kind}.{dtype}")
                merged.setdefault(kind, {})[dtype] = own if kind == "elementwise" else _in_cycles(own, slower)
    return merged


def _boost_hz(file: _GpuFile) -> float:
    return parse(file.boost_clock.value, "hz", f"gpus/{file.name}.yaml: boost_clock")


def _in_cycles(fit: KernelFit, slower: float) -> KernelFit:
    """The fit on a GPU whose clock is `slower` times slower: fixed costs are cycles (the A100's attention and GEMM ones are
    1.4 times the H100's, as its clock is; an empty kernel takes 2.45 us on both)."""
    constants = {name: value * slower if name.endswith("_s") else value for name, value in fit.constants.items()}
    return KernelFit(constants, fit.fitted_on, fit.error)


def _fit(fit: _FitFile, owner: str, boost_hz: float, inherited: KernelFit | None, where: str) -> KernelFit:
    """One fit; a file that states only some constants of an inherited fit keeps the others."""
    constants: dict[str, float] = {}
    for name, value in (fit.model_extra or {}).items():
        if isinstance(value, str):
            constants[f"{name}_s"] = _fixed_s(value, boost_hz, f"{owner}: kernels.{where}.{name}")
        else:
            constants[name] = float(value)
    if fit.source is not None and inherited is not None:
        return KernelFit({**inherited.constants, **constants}, inherited.fitted_on, {})
    return KernelFit(constants, owner, fit.error)


def _fixed_s(text: str, boost_hz: float, where: str) -> float:
    """Seconds of a fixed cost, which may be given in cycles of the boost clock."""
    number, _, unit = text.partition(" ")
    return float(number) / boost_hz if unit == "cycles" else parse(text, "s", where)


def _sources(file: _GpuFile) -> Mapping[str, str]:
    sources = {name: item.source for name in _GpuFile.model_fields if isinstance(item := getattr(file, name), _Sourced)}
    return sources | {f"flops.{kind}": item.source for kind, item in file.flops.items()}
