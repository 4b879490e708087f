"""Where the numbers of a result come from: measured, fitted, datasheet or assumed, how far off, and what was extrapolated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from sim.cost.collectives import calibrated
from sim.cost.fits import arithmetic
from sim.cost.pipeline import PipelineCost
from sim.cost.roofline import prompt_dtype
from sim.cost.step import StepCost
from sim.engine.deployment import Deployment
from sim.hardware.gpu import ALL_MEASURED, Gpu
from sim.hardware.topology_language import DIRECT_KINDS
from sim.model.balance import CONTEXT_OUTSIDE_BUDGET
from sim.model.operators import StageOperators
from sim.results.result import Columns

Kind = Literal["measured", "fitted", "datasheet", "assumed"]
Range = tuple[float, float]

TABLES = "kernel tables of NVIDIA aiconfigurator-core 0.12"
FITTED_RANGES: Mapping[str, Mapping[str, Range]] = {
    "gemm": {"tokens": (1, 32768), "n": (512, 65536), "k": (512, 65536)},
    "prefill_attention": {"tokens": (1, 16384), "heads": (1, 96), "head_dim": (64, 256)},
    "decode_attention": {"sequences": (1, 2048), "context": (1, 131072), "heads": (1, 96), "head_dim": (64, 256)},
    "prefill_mla": {"tokens": (1, 32768), "heads": (1, 128)},
    "decode_mla": {"sequences": (1, 1024), "context": (1, 131072), "heads": (2, 128)},
    "moe": {"tokens": (1, 16384), "hidden": (2048, 7168), "experts": (8, 384), "top_k": (1, 8)},
}
"""Shapes that the constants were fitted to (`TABLES`; B200, B300, GB200, GB300, H100, H200, L40S and RTX PRO 6000): smallest and
largest."""
OWN_RANGES: Mapping[tuple[str, ...], Mapping[str, Range]] = {
    ("gemm", "a100-sxm-80gb"): {"tokens": (1, 8192)},
    ("prefill_attention", "a100-sxm-80gb"): {"heads": (1, 64), "head_dim": (128, 128)},
    ("decode_attention", "a100-sxm-80gb"): {"heads": (1, 64), "head_dim": (128, 128)},
    ("moe", "a100-sxm-80gb"): {"tokens": (1, 65536), "experts": (8, 512), "top_k": (2, 22)},
}
"""Where the tables of one GPU, or of one GPU and dtype, hold other shapes."""
SAME_SILICON = 1.25
"""Error of constants borrowed from the same silicon, over their error on the GPU they were fitted to: of H100 and H200, B200 and
GB200, B300 and GB300, foretold by each other (`twowalls calibrate kernels --leave-one-out`), 1.14 in the mean of 106 fits; 88 of
them are below 1.25, the prefill of latent attention is up to 2.1 (9.9 %)."""
SHARED_ERROR: Mapping[str, tuple[float, float]] = {
    "gemm": (0.13, 0.42), "prefill_attention": (0.14, 0.16), "decode_attention": (0.15, 0.11), "prefill_mla": (0.11, 0.07),
    "decode_mla": (0.13, 0.13), "moe": (0.35, 0.31),
}  # fmt: skip
"""Mean absolute error of the constants that all measured GPUs share, on one that nobody measured, in bf16 and in fewer bits: the
worst of A100, L40S and RTX PRO 6000, the only ones of their compute capability, foretold by the others (`twowalls calibrate
kernels --leave-one-out`; the A100's latent attention by the L40S and the RTX PRO 6000, as the catalogue has it, and decodes of
latents in fp8, which run in the same kernel, as in bf16)."""
UNMEASURED_ERROR = 0.3
"""Mean absolute error of a kernel whose constants are assumed: an uncalibrated roofline errs by 30 % or more."""
HOST_LOG_STD = 0.3
"""Spread of an engine's own times: standard deviation of their logarithms over the three fitted engines (host time 0.3, gaps a
layer 0.4, a step 0.1, entry 0.6), which are as far apart as one engine's releases."""
MEAN_TO_LOG_STD = math.sqrt(math.pi / 2)
"""Standard deviation over mean absolute value of a normal error."""
NINE_IN_TEN = 1.645
"""Standard deviations within which nine in ten of a normal error lie."""
FITTED_GPUS_OF_A_LINK = 8
"""Largest group that the collectives inside a node were fitted on."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one number, or one group of numbers, comes from."""

    number: str
    kind: Kind
    source: str
    error: float | None = None
    """As the source says it, a fraction: mean absolute of kernels, nine in ten within it of collectives."""
    extrapolated: str | None = None
    """What lies outside of what was measured; None: nothing."""
    component: tuple[str, ...] = ()
    """What to scale to draw from its error: (kernel, GPU, kind, dtype), (collective, link kind) or (host,); () if exact."""
    log_std: float = 0.0
    """Standard deviation of the logarithm of the true time over the predicted one."""

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "number": self.number, "kind": self.kind, "source": self.source, "error": self.error,
            "extrapolated": self.extrapolated,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Regime:
    """How far a run went: the largest shapes that its kernels saw."""

    tokens: int
    """Of an iteration."""
    sequences: int
    """That decode in an iteration."""
    context: int
    """Tokens of the longest request."""
    chunk: int
    """Tokens of a prompt in one iteration, at most."""
    after_context: bool
    """Whether prompt chunks came after cached tokens."""

    @classmethod
    def of(cls, requests: Columns, steps: Columns) -> Regime:
        """The regime that the records of a run show."""
        if not len(steps["start_s"]) or not len(requests["id"]):
            return cls(0, 0, 0, 0, False)
        chunk = min(int(steps["prefill_tokens"].max()), int(requests["input_tokens"].max()))
        return cls(
            tokens=int((steps["prefill_tokens"] + steps["decodes"]).max()),
            sequences=int(steps["decodes"].max()),
            context=int((requests["input_tokens"] + requests["generated_tokens"]).max()),
            chunk=chunk,
            after_context=bool(chunk < requests["input_tokens"].max() or (requests["cached_tokens"] > 0).any()),
        )


def provenance(
    pools: Sequence[Deployment], costs: Sequence[StepCost | PipelineCost], regime: Regime, from_trace: bool
) -> list[Origin]:
    """Every group of numbers that a run rests on; in the order hardware, kernels, collectives, engine, memory, workload.

    Args:
        pools: what is deployed.
        costs: of the replicas, in any order.
        regime: what the run asked for.
        from_trace: requests were recorded, not drawn.
    """
    stages = [stage for cost in costs for stage in (cost.stages if isinstance(cost, PipelineCost) else [cost])]
    gpus = {gpu.name: gpu for pool in pools for gpu in pool.gpus.values()}
    found = [origin for gpu in gpus.values() for origin in _datasheet(gpu, stages)]
    for pool in pools:
        for gpu in {gpu.name: gpu for gpu in pool.gpus.values()}.values():
            found += [_kernel(pool, gpu, *key, shapes, regime) for key, shapes in _asked(stages).items()]
        found += _collectives(pool)
    if len({id(pool) for pool in pools}) > 1:
        found += _links(pools[0], [pools[0].gpu_names[0], pools[-1].gpu_names[0]])
    found += [_engine(pool) for pool in {pool.preset.name: pool for pool in pools}.values()]
    if not pools[0].preset.ideal:
        found.append(Origin("memory beside weights and KV cache", "fitted", CONTEXT_OUTSIDE_BUDGET.source))
    source = "the trace that the scenario names" if from_trace else "the scenario's own distributions"
    found.append(Origin("requests", "measured" if from_trace else "assumed", source))
    return list(dict.fromkeys(found))


def kind_of(source: str) -> Kind:
    """What a source says of its numbers; whoever names a printed page says datasheet."""
    if re.match(r"assumed|borrowed|derived|step overheads", source):
        return "assumed"
    if re.match(r"fitted|runtime:", source):
        return "fitted"
    return "measured" if re.search(r"total (shown|printed)|device queries|measured", source) else "datasheet"


def _datasheet(gpu: Gpu, stages: Sequence[StepCost]) -> Iterator[Origin]:
    """Printed numbers of a GPU that the kernels and the memory of this model rest on."""
    rates = sorted({arithmetic(gpu, dtype) for _, dtype in _asked(stages)} & set(gpu.flops_per_s))
    for name in ("hbm_bandwidth", *(f"flops.{rate}" for rate in rates), "visible_memory"):
        source = gpu.sources.get(name, "")
        yield Origin(f"{gpu.name}: {name}", kind_of(source), source)


Shapes = dict[str, set[float]]


def _asked(stages: Iterable[StepCost]) -> dict[tuple[str, str], Shapes]:
    """Shapes by kernel kind and dtype of all stages."""
    found: dict[tuple[str, str], Shapes] = {}

    def add(kind: str, dtype: str, **shape: float) -> None:
        shapes = found.setdefault((kind, dtype), {})
        for name, value in shape.items():
            shapes.setdefault(name, set()).add(value)

    for stage in {id(stage.operators): stage for stage in stages}.values():
        _collect(stage.operators, stage.preset.fp8_attention, add)
    return found


def _collect(operators: StageOperators, fp8_attention: float, add: Any) -> None:
    for gemm in operators.gemms:
        add("gemm", gemm.dtype, n=gemm.n, k=gemm.k)
    for attention in operators.attentions:
        name = "mla" if attention.kind == "mla" else "attention"
        shape = {"heads": attention.heads} | ({} if name == "mla" else {"head_dim": attention.head_dim})
        shape |= {} if attention.reach is None else {"window": attention.reach}
        prompts = attention.kv_dtype if name == "mla" else prompt_dtype(attention.kv_dtype, fp8_attention)
        add(f"prefill_{name}", prompts, **shape)
        add(f"decode_{name}", attention.kv_dtype, **shape)
    for moe in operators.moes:
        here = {"local_experts": moe.local_experts, "columns": moe.intermediate}
        add("moe", moe.dtype, hidden=moe.hidden, experts=moe.experts, top_k=moe.top_k, **here)
    if operators.elementwise:
        add("elementwise", "bf16")


def _kernel(pool: Deployment, gpu: Gpu, kind: str, dtype: str, shapes: Shapes, regime: Regime) -> Origin:
    """One kernel kind and dtype on one GPU."""
    number, component = f"{gpu.name}: {kind} {dtype}", ("kernel", gpu.name, kind, dtype)
    if pool.preset.ideal:
        return Origin(number, "datasheet", "printed peaks, no fixed cost")
    priced = _priced_as(pool, gpu, kind, dtype, shapes)
    if pool.calibration is not None and (gpu.name, kind, dtype) in pool.kernel_times:
        owner, error, _ = _fit(gpu, kind, priced)
        beyond = _beyond(kind, owner, dtype, shapes, regime) or None
        return Origin(number, "fitted", pool.calibration.origin, error, beyond, component, _log_std(error))
    for backend in pool.kernel_tables:
        used = backend.usage.get((kind, dtype)) if backend.gpu.name == gpu.name else None
        if used is not None:
            far = "a shape from its nearest measured relatives" if used.substitute else None
            beyond = "; ".join(text for text in (far, _beyond(kind, gpu.name, dtype, shapes, regime)) if text)
            # leave-one-out errors of the tables' interpolation (docs/kernels.md) are near the fits' own
            error = _fit(gpu, kind, priced)[1]
            return Origin(number, "measured", used.origin, error, beyond or None, component, _log_std(error))
    owner, error, why = _fit(gpu, kind, priced)
    beyond = "; ".join(text for text in (why, _beyond(kind, owner, dtype, shapes, regime)) if text)
    if error is None:
        return Origin(number, "assumed", beyond or "no measurement", None, beyond or None, component, _log_std(None))
    return Origin(number, "fitted", f"{owner}, {TABLES}", error, beyond or None, component, _log_std(error))


def _priced_as(pool: Deployment, gpu: Gpu, kind: str, dtype: str, shapes: Shapes) -> str:
    """What the constants are called that price a kernel: experts have them by the tiles of their engine."""
    if kind != "moe":
        return dtype
    experts, columns = (max(shapes[name]) for name in ("local_experts", "columns"))
    return pool.preset.expert_tiles.priced_as(gpu, dtype, experts, columns)


def _fit(gpu: Gpu, kind: str, dtype: str) -> tuple[str, float | None, str]:
    """(the GPU that was measured, mean absolute error on this one, why that is not the fit's own) of a kernel."""
    by_dtype = gpu.kernels.get(kind, {})
    asked = "bf16" if dtype == "fp16" else dtype
    own = asked if kind != "gemm" or arithmetic(gpu, asked) != "bf16" else "bf16"
    fit = by_dtype.get(own) or by_dtype.get("bf16")
    if fit is None:
        return gpu.name, None, f"nobody measured {kind}"
    why = []
    if own not in by_dtype or own != asked:
        why.append(f"no fit for {asked}: constants of bf16")
    error = fit.error.get(
        "mape_beyond_host", fit.error.get("mape")
    )  # an engine does not wait for the host of a test bench
    if fit.fitted_on == ALL_MEASURED:
        wide, narrow = SHARED_ERROR.get(kind, (UNMEASURED_ERROR, UNMEASURED_ERROR))
        error = narrow if own in by_dtype and not own.startswith("bf16") else wide
    elif error is None and fit.error:
        why.append("no measurement of shapes that serving uses")
    elif error is not None and fit.fitted_on != gpu.name:
        error *= SAME_SILICON
    if fit.fitted_on != gpu.name:
        why.append(f"constants of {fit.fitted_on} on the datasheet of {gpu.name}")
    return fit.fitted_on, error, "; ".join(why)


def _log_std(error: float | None) -> float:
    return math.log1p((UNMEASURED_ERROR if error is None else error) * MEAN_TO_LOG_STD)


def _beyond(kind: str, owner: str, dtype: str, shapes: Shapes, regime: Regime) -> str:
    """What of the shapes and the run lies outside of the shapes that were measured."""
    ranges = dict(FITTED_RANGES.get(kind, {}))
    for key in ((kind, owner), (kind, owner, dtype)):
        ranges |= OWN_RANGES.get(key, {})
    seen: dict[str, Iterable[float]] = dict(shapes)
    prefill = kind.startswith("prefill")
    seen["tokens"] = {regime.chunk if prefill else regime.tokens} - {0}
    seen |= {"sequences": {regime.sequences} - {0}, "context": {regime.context} - {0}}
    texts = []
    for name, (low, high) in ranges.items():
        outside = sorted(value for value in seen.get(name, ()) if not low <= value <= high)
        if outside:
            values = ", ".join(f"{value:,.0f}" for value in outside)
            texts.append(f"{name} {values} (measured {low:,.0f} to {high:,.0f})")
    if shapes.get("window"):
        windows = ", ".join(f"{window:,.0f}" for window in sorted(shapes["window"]))
        texts.append(f"windows of {windows} tokens (fitted without)")
    if prefill and regime.after_context:
        texts.append("prompt chunks after cached tokens (measured without)")
    return "; ".join(texts)


def _collectives(pool: Deployment) -> list[Origin]:
    """The links that the replicas' own collectives and hand-overs take."""
    if pool.preset.ideal:
        return []
    ranks = [gpu for stage in pool.placement[0] for gpu in stage]
    return _links(pool, pool.gpu_names if pool.lock_step else ranks)


def _links(pool: Deployment, ranks: Sequence[str]) -> list[Origin]:
    """Each kind of link between neighbours among these GPUs: its bandwidth, and what software adds."""
    topology, found = pool.topology, []
    for kind in sorted({topology.route(a, b).kind for a, b in pairwise(ranks)}):
        found.append(Origin(f"{topology.name}: bandwidth of {kind}", "datasheet", " ".join(topology.source.split())))
        constants = calibrated(pool.link_constants, topology.calibration)[kind]
        largest = max(len(stage) for replica in pool.placement for stage in replica)
        far = None
        if kind in DIRECT_KINDS and largest > FITTED_GPUS_OF_A_LINK:
            far = f"{largest} GPUs (measured 2, 4 and {FITTED_GPUS_OF_A_LINK})"
        source, origin = constants.source, kind_of(constants.source)
        if origin == "assumed":
            far = "; ".join(text for text in (f"no measurement of {kind}", far) if text)
        elif kind in topology.calibration:
            origin = "fitted"  # fitted to this very fabric, whatever its source says
        spread = math.log1p(constants.error) / NINE_IN_TEN
        found.append(
            Origin(f"collectives over {kind}", origin, source, constants.error, far, ("collective", kind), spread)
        )
    return found


def _engine(pool: Deployment) -> Origin:
    preset, own = pool.preset, pool.calibration and pool.calibration.engine
    if preset.ideal:
        return Origin("engine: ideal", "assumed", preset.source)
    spread = HOST_LOG_STD if not own or own.log_std is None else own.log_std
    return Origin(f"engine: {preset.name}", "fitted", preset.source, None, None, ("host",), spread)


def extrapolations(origins: Iterable[Origin]) -> list[str]:
    """A sentence for everything that a run took from outside of what was measured, once a reason."""
    found: dict[str, list[str]] = {}
    for one in origins:
        if one.extrapolated:
            found.setdefault(one.extrapolated, []).append(one.number)
    return [f"extrapolated: {', '.join(numbers)}: {reason}" for reason, numbers in found.items()]
