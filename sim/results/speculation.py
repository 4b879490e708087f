"""What speculative decoding was worth in a run."""

from __future__ import annotations

from collections.abc import Sequence as Items

from sim.cost.pipeline import PipelineCost
from sim.cost.speculation import SpeculativeCost
from sim.cost.step import StepCost
from sim.engine.recorder import Columns


def speculation_notes(costs: Items[StepCost | PipelineCost], steps: Columns) -> list[str]:
    """Mean tokens a verification yields, and how much sooner they came than one by one; nothing without speculation.

    The speed-up is that of the same decode-only batches, each as often as it takes plain iterations for its tokens.
    """
    cost = costs[0]
    decoding = steps["decodes"] > 0
    if not isinstance(cost, SpeculativeCost) or not decoding.any():
        return []
    decodes, extra = steps["decodes"], steps["extra_tokens"]
    length = 1 + float(extra[decoding].sum()) / float(decodes[decoding].sum())
    alone = decoding & (steps["prefills"] == 0)
    contexts = [steps[name][alone].astype(float) for name in _context_columns(cost)]
    plain_s = float((cost.plain_s(decodes[alone], contexts) * (1 + extra[alone] / decodes[alone])).sum())
    taken_s = float(steps["first_s"][alone].sum())
    gain = f", {plain_s / taken_s:.2f} times as fast as without" if taken_s else ""
    return [f"speculation: {length:.2f} tokens a verification of {cost.verified}{gain}"]


def _context_columns(cost: SpeculativeCost) -> list[str]:
    return ["context_tokens", *(f"window{window}_tokens" for window in cost.windows)]
