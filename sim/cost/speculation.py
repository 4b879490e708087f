"""What an iteration of speculative decoding costs: verifying several tokens a sequence, and the draft that proposed them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from sim.cost.kernels import Floats
from sim.cost.step import ChunkShape, DecodeSlopes, Ints, StepCost
from sim.model.operators import StageOperators


class SpeculativeCost(StepCost):
    """Cost of iterations in which every decoding sequence has `1 + drafts` tokens verified.

    GEMMs see all of these tokens, and so does the head. Attention reads a sequence's KV cache once for all of them, and
    multiplies with it as often as there are tokens. The draft runs `drafts` decode iterations of its own, each on one more
    token of context, and computes the prompts too.

    Args:
        operators: what one rank of the model computes.
        draft: cost of the draft's iterations on the same GPUs; with a share below 1 that of the model itself, without drafts.
        share: what the draft takes of that.
        drafts: tokens proposed for a sequence in an iteration.
        more: as `StepCost`.
    """

    def __init__(
        self, operators: StageOperators, *arguments: Any, draft: StepCost, share: float, drafts: int, **more: Any
    ) -> None:
        self.draft, self.share, self.drafts, self.verified = draft, share, drafts, 1 + drafts
        super().__init__(operators, *arguments, **more)
        self.sampled_causes = self._sampled_causes(np.arange(self.verified * more["max_seqs"] + 1))
        self.sampled_s = self.sampled_causes.sum(axis=0).tolist()

    def _decode_tables(self, sequences: Ints) -> tuple[Floats, list[DecodeSlopes]]:
        fixed, slopes = super()._decode_tables(sequences)
        return fixed, [DecodeSlopes(s.window_tokens, s.memory_s, self.verified * s.compute_s) for s in slopes]

    def draft_s(self, decodes: int, contexts: list[int], chunk_tokens: int, chunks: Items[ChunkShape]) -> float:
        """Seconds of the draft beside one iteration.

        Args:
            decodes: sequences that decode.
            contexts: their tokens of context in all, then those within each window of the model.
            chunk_tokens: of prompts.
            chunks: of prompts, each.
        """
        draft, total_s = self.draft, 0.0
        if decodes:
            once_s = draft.token_s[decodes] + draft.sampled_s[decodes] + draft.decode_fixed_s[decodes]
            for slopes, context in zip((draft.full_slope_s, *draft.window_slopes_s), contexts, strict=False):
                once_s += slopes[decodes] * context
            growth_s = draft.full_slope_s[decodes] * decodes * (self.drafts - 1) / 2
            total_s += self.drafts * (once_s + growth_s)
        if chunks:
            total_s += draft.token_s[chunk_tokens] + draft.chunks_s(chunks)
        return self.share * total_s

    def drafts_s(self, decodes: Ints, contexts: list[Floats], chunk_tokens: Ints, chunk_s: Floats) -> Floats:
        """`draft_s` of many iterations; `chunk_s`: the draft's attention of the prompt chunks of each."""
        draft = self.draft
        once_s = np.asarray(draft.token_s)[decodes] + np.asarray(draft.sampled_s)[decodes] + draft.decode_fixed[decodes]
        for slopes, context in zip((draft.full_slope_s, *draft.window_slopes_s), contexts, strict=False):
            once_s = once_s + np.asarray(slopes)[decodes] * context
        growth_s = np.asarray(draft.full_slope_s)[decodes] * decodes * (self.drafts - 1) / 2
        prompts_s = np.where(chunk_tokens > 0, np.asarray(draft.token_s)[chunk_tokens] + chunk_s, 0.0)
        return np.asarray(self.share * (np.where(decodes > 0, self.drafts * (once_s + growth_s), 0.0) + prompts_s))

    def plain_s(self, decodes: Ints, contexts: list[Floats]) -> Floats:
        """Seconds of decode iterations of the same sequences without speculation, scheduled as the preset does by itself."""
        total_s = np.asarray(self.token_s)[decodes] + np.asarray(self.sampled_s)[decodes] + self.decode_fixed[decodes]
        for slope in self.decode_slopes:
            context = (
                contexts[0] if slope.window_tokens is None else contexts[1 + self.windows.index(slope.window_tokens)]
            )
            total_s = total_s + (slope.memory_s + slope.compute_s / self.verified)[decodes] * context
        host_s = np.asarray(self.host_s)[decodes]
        return np.maximum(total_s, host_s) if self.preset.async_scheduling else np.asarray(total_s + host_s)
