"""What GPUs cost and draw: a small dated file that users replace by their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sim import catalogue
from sim.errors import InputError, nearest
from sim.hardware.gpu import gpu_name, load_gpu
from sim.scenario.fields import looks_like_path
from sim.scenario.loading import read_yaml
from sim.units import parse

SHIPPED = Path(__file__).resolve().parents[1] / "hardware" / "prices.yaml"


@dataclass(frozen=True, slots=True)
class Offer:
    """One kind of GPU that can be had."""

    gpu: str
    topology: str
    """The machine it comes in."""
    usd_per_h: float
    """Of one GPU."""
    power_w: float
    """Its printed limit, which it draws at most."""
    idle_power_w: float | None
    """None: nobody told."""
    source: str


@dataclass(frozen=True, slots=True)
class Prices:
    """All offers, of one date."""

    date: str
    source: str
    offers: Mapping[str, Offer]

    def chosen(self, names: list[str] | None) -> list[Offer]:
        """The offers of the GPUs called so; None: all of them.

        Raises:
            InputError: no such GPU, or no price for it.
        """
        if names is None:
            return list(self.offers.values())
        found = []
        for name in names:
            gpu = gpu_name(name, "--gpus")
            if gpu not in self.offers:
                raise InputError("--gpus", f"got '{name}', which has no price", nearest(gpu, self.offers))
            found.append(self.offers[gpu])
        return found


class _OfferFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    topology: str
    price: str | float
    source: str = ""
    idle_power: str | float | None = None


class _PricesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    date: Any
    source: str = ""
    gpus: dict[str, _OfferFile]
    idle_power_source: str = ""


def load_prices(path: Path = SHIPPED) -> Prices:
    """The prices in a file like `sim/hardware/prices.yaml`.

    Raises:
        InputError: the file is wrong, or names a GPU that is not in the catalogue.
    """
    try:
        file = _PricesFile.model_validate(read_yaml(path, f"it should look like {SHIPPED.name}"))
    except ValidationError as error:
        # a misspelt key is also one that is missing; what was written says more than what was not
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"])
        hint = f"it should look like {SHIPPED.name}: date, source, gpus: NAME: {{topology, price}}"
        problem = "is an unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"{path}: {place}", problem, hint) from None
    if not file.gpus:
        raise InputError(f"{path}: gpus", "names no GPU", "give one a topology and a price")
    found: dict[str, Offer] = {}
    names: dict[str, str] = {}
    for name, asked in file.gpus.items():
        offer = _offer(name, asked, path)
        if offer.gpu in found:
            problem = f"is the GPU that {names[offer.gpu]} names too"
            raise InputError(f"{path}: gpus.{name}", problem, "give each GPU one price")
        found[offer.gpu], names[offer.gpu] = offer, name
    return Prices(str(file.date), file.source, found)


def _offer(name: str, offer: _OfferFile, path: Path) -> Offer:
    where = f"{path}: gpus.{name}"
    gpu = load_gpu(gpu_name(name, where))
    beside = str(path.parent.absolute() / offer.topology) if looks_like_path(offer.topology) else offer.topology
    catalogue.resolve("topologies", beside, f"{where}.topology")
    price = parse(offer.price, "usd_per_h", f"{where}.price")
    if price <= 0:
        raise InputError(f"{where}.price", f"got '{offer.price}'", "a price is above 0")
    idle_w = gpu.idle_power_w if offer.idle_power is None else parse(offer.idle_power, "w", f"{where}.idle_power")
    if offer.idle_power is not None and not 0 <= (idle_w or 0.0) <= gpu.power_w:
        hint = f"zero or more, and at most the printed limit of {gpu.power_w:g} W"
        raise InputError(f"{where}.idle_power", f"got '{offer.idle_power}'", hint)
    return Offer(gpu.name, beside, price, gpu.power_w, idle_w, offer.source)
