"""The topology file as a user writes it: a node template, a fabric, links, overrides.

A file names components and links. `count` repeats a component; a link joins every `from` to its `to`, whose index may be
an expression over `i` (index of the `from` component), `node` (number of the node) and the parameters:

    links:
      - {from: g, to: "sw[i // 2]", kind: pcie5, bandwidth: 64 GB/s, latency: 0.3 us}

Bandwidth is that of one direction; every link carries as much each way. `times` counts parallel cables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from sim import units
from sim.errors import InputError, nearest

NVLINK_KINDS = ("nvlink2", "nvlink3", "nvlink4", "nvlink5")
DIRECT_KINDS = (*NVLINK_KINDS, "infinity_fabric")
"""Links on which one GPU reads another's memory as if it were its own."""
PCIE_KINDS = ("pcie3", "pcie4", "pcie5", "pcie6", "c2c", "socket")
"""Links through the host: PCIe, NVLink-C2C to a Grace CPU, and between sockets."""
NETWORK_KINDS = ("infiniband", "ethernet")
LINK_KINDS = (*DIRECT_KINDS, *PCIE_KINDS, *NETWORK_KINDS)
ComponentType = Literal["gpu", "nvswitch", "pcie_switch", "cpu", "nic", "switch"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)


def _time(value: str | int | float) -> str | int | float:
    """`value` if it is a time of zero or more with its unit."""
    try:
        seconds = units.parse(value, "s")
    except InputError as error:
        problem, hint = error.problem, error.hint
    else:
        if seconds >= 0:
            return value
        problem, hint = f"got {value!r}", "a time is zero or longer"
    raise PydanticCustomError("scenario", "{problem}", {"problem": problem, "hint": hint})


Time = Annotated[str | int | float, AfterValidator(_time)]


class ComponentSpec(_Strict):
    type: ComponentType
    """gpu, nvswitch, pcie_switch, cpu (a socket: root complex and host memory), nic, switch."""
    count: str | int | float | None = None
    """How many; without it there is one, whose name carries no number."""
    in_network_reduction: bool = False
    """Whether the switch adds up what passes (NVLink SHARP, InfiniBand SHARP)."""


class LinkSpec(_Strict):
    from_: str = Field(alias="from")
    to: str
    kind: str
    bandwidth: str | int | float
    """Bytes or bits a second in one direction, or the name of a parameter that holds them."""
    latency: str | int | float
    """One way, or the name of a parameter."""
    times: str | int | float = 1
    """Parallel cables: the bandwidth is multiplied by it, the latency is not."""


class PartSpec(_Strict):
    components: dict[str, ComponentSpec]
    links: list[LinkSpec] = []


class OverrideSpec(_Strict):
    """What differs from the regular machine: one link or one GPU."""

    link: tuple[str, str] | None = None
    bandwidth_fraction: float | None = Field(default=None, gt=0)
    extra_latency: Time | None = None
    missing: bool = False
    gpu: str | None = None
    speed: float | None = Field(default=None, gt=0)
    """Speed of this GPU relative to its kind: 0.8 takes 25 % longer for everything it computes."""


class CalibrationSpec(_Strict):
    """Measured behaviour of one link kind of this fabric, in place of the built-in constants."""

    start: Time | None = None
    step_overhead: Time | None = None
    efficiency: float | None = Field(default=None, gt=0, le=1)
    error: float | None = Field(default=None, ge=0)
    """Fraction within which nine in ten measured times lie; that of the built-in constants if not given."""
    source: str


class TopologySpec(_Strict):
    name: str
    description: str
    source: str
    gpu: str
    parameters: dict[str, int | float | str]
    node: PartSpec
    fabric: PartSpec = PartSpec(components={})
    overrides: list[OverrideSpec] = []
    calibration: dict[str, CalibrationSpec] = {}


def read_spec(data: Mapping[str, Any], where: str) -> TopologySpec:
    """The validated topology description in `data`.

    Raises:
        InputError: an unknown key, a missing one or a wrong type, with its path and the nearest allowed name.
    """
    try:
        spec = TopologySpec.model_validate(data)
    except ValidationError as error:
        raise _explained(error, where) from None
    for part_name, part in (("node", spec.node), ("fabric", spec.fabric)):
        for index, link in enumerate(part.links):
            _check_kind(link.kind, f"{where}: {part_name}.links[{index}].kind")
    for kind in spec.calibration:
        _check_kind(kind, f"{where}: calibration")
    if sum(component.type == "gpu" for component in spec.node.components.values()) != 1:
        raise InputError(f"{where}: node.components", "a node has exactly one component of type gpu", "give it a count")
    return spec


def split_reference(text: str, where: str) -> tuple[str, str | None]:
    """("leaf", "node // 32") of "leaf[node // 32]"; the index is None where there is none."""
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(?:\[(.+)\])?\s*", text)
    if match is None:
        raise InputError(where, f"got '{text}'", 'write a component name, such as "g" or "leaf[i // 2]"')
    return match.group(1), match.group(2)


def _check_kind(kind: str, where: str) -> None:
    if kind not in LINK_KINDS:
        raise InputError(where, f"unknown link kind '{kind}'", nearest(kind, LINK_KINDS))


def _explained(error: ValidationError, where: str) -> InputError:
    first = min(
        error.errors(), key=lambda one: one["type"] == "missing"
    )  # a key is often missing because it is misspelt
    of_union = first["loc"][-1] in ("str", "int", "float")
    path = ".".join(str(part) for part in (first["loc"][:-1] if of_union else first["loc"]))
    if first["type"] == "scenario":
        return InputError(f"{where}: {path}", first["ctx"]["problem"], first["ctx"]["hint"])
    if first["type"] == "extra_forbidden":
        return InputError(f"{where}: {path}", "unknown key", nearest(str(first["loc"][-1]), _allowed(first["loc"])))
    if first["type"] == "missing":
        hint = "is this a topology file? `twowalls list topologies` names those that come with twowalls"
        return InputError(f"{where}: {path}", "is missing", hint)
    got = f"got {first['input']!r}"
    if of_union:
        return InputError(f"{where}: {path}", got[:80], "write a finite number, or text")
    return InputError(f"{where}: {path}", got[:80], f"{first['msg'][0].lower()}{first['msg'][1:]}")


def _allowed(location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed beside the one at `location`."""
    model: type[BaseModel] = TopologySpec
    if location[0] in ("node", "fabric"):
        model = PartSpec
        if len(location) > 2:
            model = ComponentSpec if location[1] == "components" else LinkSpec
    elif location[0] == "overrides":
        model = OverrideSpec
    elif location[0] == "calibration":
        model = CalibrationSpec
    return [field.alias or name for name, field in model.model_fields.items()]
