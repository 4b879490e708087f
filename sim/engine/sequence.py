"""A request inside a replica: what the scheduler knows of it."""

from __future__ import annotations

from sim.workload.content import Content

WAITING, PREFILLING, DECODING, ENDING, OVER = range(5)
NEVER = float("nan")
"""A time that has not come. It is unequal to itself, so `x != x` asks for it: cheaper in the hot path than `isnan`."""


class Sequence:
    """One request while a replica serves it.

    `known_tokens` counts prompt and sampled tokens, the one in flight included; `computed_tokens` those whose KV is (being)
    computed. For a DECODING sequence both follow from the iteration number (see `DecodeSet`) and are written back only when
    it leaves the set.
    """

    __slots__ = (
        "arrival_s",
        "blocks",
        "cached_tokens",
        "computed_tokens",
        "content",
        "first_token_s",
        "gap_since_s",
        "id",
        "keyed_blocks",
        "known_tokens",
        "lane",
        "last_iteration",
        "limit_tokens",
        "offset",
        "order",
        "output_tokens",
        "preemptions",
        "priority",
        "prompt_tokens",
        "scheduled_s",
        "session",
        "state",
        "tenant",
    )

    def __init__(
        self,
        id: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        max_model_len: int,
        content: Content | None = None,
        session: int = -1,
    ) -> None:
        self.id = id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        whole_tokens = prompt_tokens + output_tokens
        self.limit_tokens = whole_tokens if whole_tokens < max_model_len else max_model_len
        """It ends when it knows this many tokens."""
        self.known_tokens = prompt_tokens
        self.computed_tokens = 0
        self.state = WAITING
        self.order = -1
        """Place in the running list: admissions are counted, a resumed sequence gets a new place."""
        self.lane: object = None
        """The scheduler whose decode set it is in: one of several where batches are pipelined."""
        self.offset = 0
        self.last_iteration = -1
        """The iteration that samples its last token, once it decodes."""
        self.preemptions = 0
        self.cached_tokens = 0
        self.scheduled_s = NEVER
        self.first_token_s = NEVER
        self.gap_since_s = NEVER
        """When its last token came, if an iteration without a token for it lies between."""
        self.content = content
        self.session = session
        """The conversation it belongs to; -1: none."""
        self.tenant = 0
        self.priority = 0
        """Lower goes first, where the policy looks at it."""
        self.blocks: list[int] = []
        self.keyed_blocks = 0

    @property
    def generated_tokens(self) -> int:
        """Output tokens sampled so far."""
        return self.known_tokens - self.prompt_tokens
