"""What GPUs cost and draw: a small dated file that users replace by their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sim.errors import InputError, nearest
from sim.hardware.gpu import load_gpu
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
            gpu = load_gpu(name).name
            if gpu not in self.offers:
                raise InputError("--gpus", f"got '{name}', which has no price", nearest(gpu, self.offers))
            found.append(self.offers[gpu])
        return found


class _OfferFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    topology: str
    price: str
    source: str = ""
    idle_power: str | None = None


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
        file = _PricesFile.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        hint = f"it should look like {SHIPPED.name}: date, source, gpus: NAME: {{topology, price}}"
        raise InputError(f"{path}: {place}", first["msg"], hint) from None
    offers = {}
    for name, offer in file.gpus.items():
        gpu, where = load_gpu(name), f"{path}: gpus.{name}"
        idle = None if offer.idle_power is None else parse(offer.idle_power, "w", f"{where}.idle_power")
        price = parse(offer.price, "usd_per_h", f"{where}.price")
        offers[gpu.name] = Offer(gpu.name, offer.topology, price, gpu.power_w, idle or gpu.idle_power_w, offer.source)
    return Prices(str(file.date), file.source, offers)
