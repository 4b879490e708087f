"""Small random cases that reach the corners of the scheduler: tight pools, shared prefixes, every version."""

from __future__ import annotations

from random import Random

from .scheduler import VERSIONS
from .trace import Case, Config, Request, Segment


def random_case(seed: int, **settings: object) -> Case:
    """The case of this seed; `settings` fix fields of its configuration (the rest is drawn as without them).

    Every case is legal (0 < prompt_len < max_model_len) and ends: complete, stuck, or cut at max_iters.
    """
    rng = Random(seed)
    drawn = _settings(rng)
    drawn.update(settings)
    if not VERSIONS[str(drawn["version"])].knows_async:
        drawn["async_scheduling"] = False
    config = Config(**drawn)  # type: ignore[arg-type]
    return Case(name=f"random{seed}", config=config, requests=tuple(_requests(rng, config)))


def _settings(rng: Random) -> dict[str, object]:
    """A configuration in which everything is scarce in turn."""
    version = rng.choice(["0.33.0", "0.33.0", *VERSIONS])
    block_size = rng.choice([1, 2, 3, 4, 4, 8, 16])
    usable_blocks = rng.choice([rng.randint(2, 8), rng.randint(6, 20), rng.randint(15, 60)])
    pool_tokens = usable_blocks * block_size
    # The real engine starts only if max_model_len fits into the pool; one that does not is worth a try, too (X1, X2).
    longest = pool_tokens if rng.random() < 0.8 else 2 * pool_tokens
    chunked = rng.random() < 0.8
    max_model_len = rng.randint(max(3, longest // 2), max(4, longest))
    budget = rng.choice([rng.randint(1, 8), rng.randint(4, 40), rng.randint(30, 200)])
    if not chunked and rng.random() < 0.7:
        budget = max(budget, max_model_len)
    return {
        "version": version,
        "max_num_seqs": rng.choice([1, 2, 3, 4, 6, 8, 16]),
        "max_num_batched_tokens": budget,
        "block_size": block_size,
        "num_gpu_blocks": usable_blocks + 1,
        "max_model_len": max_model_len,
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": rng.random() < 0.7,
        "long_prefill_token_threshold": rng.choice([0, 0, rng.randint(1, 6), rng.randint(3, 30)]),
        "scheduler_reserve_full_isl": rng.random() < 0.65,
        "watermark": rng.choice([0.0, 0.0, 0.0, 0.05, 0.15, 0.3]),
        "async_scheduling": rng.random() < 0.5,
        "max_iters": 400,
    }


def _requests(rng: Random, config: Config) -> list[Request]:
    """Requests that start anew, share a prefix, repeat an earlier prompt or continue an earlier request."""
    requests: list[Request] = []
    arrival = 0
    gap = rng.choice([0, 1, 3, 8, 30])
    prefix_share, repeat_share, continue_share = rng.choice([(0.0, 0.0, 0.0), (0.8, 0.0, 0.0), (0.3, 0.2, 0.4)])
    typical = rng.uniform(0.1, 1.0) * config.max_model_len
    for number in range(rng.randint(1, 14)):
        if number and rng.random() < 0.6:
            arrival += rng.randint(0, gap)
        draw = rng.random()
        if requests and draw < continue_share:
            prompt = _continuation(rng, number, rng.choice(requests))
        elif requests and draw < continue_share + repeat_share:
            prompt = list(rng.choice(requests).prompt)
        else:
            prompt = _fresh(rng, number, typical, rng.random() < prefix_share)
        prompt = shortened(prompt, config.max_model_len - 1)
        # Mostly short of the pool; sometimes far beyond max_model_len, which cuts it (E1).
        room = config.max_model_len - sum(count for _, _, count in prompt)
        max_tokens = rng.choice([1, rng.randint(1, 6), rng.randint(1, room), rng.randint(1, 30), 2 * room])
        prompt_len = sum(count for _, _, count in prompt)
        requests.append(Request(number, arrival, prompt_len, max_tokens, tuple(prompt)))
    return requests


def _fresh(rng: Random, number: int, typical: float, prefixed: bool) -> list[Segment]:
    """A prompt of its own, behind one of three system prompts if `prefixed`."""
    own: Segment = ("s", f"u{number}", max(1, round(typical * rng.uniform(0.2, 1.6))))
    if not prefixed:
        return [own]
    return [("s", f"p{rng.randrange(3)}", max(1, round(typical * rng.uniform(0.2, 1.0)))), own]


def _continuation(rng: Random, number: int, earlier: Request) -> list[Segment]:
    """The next turn of a chat: an earlier prompt, its output or a part of it, and mostly a new question."""
    prompt = [*earlier.prompt, ("o", earlier.id, rng.choice([earlier.max_tokens, rng.randint(1, earlier.max_tokens)]))]
    question = rng.randint(0, 6)
    if question:
        prompt.append(("s", f"u{number}", question))
    return prompt


def shortened(prompt: list[Segment], limit: int) -> list[Segment]:
    """The first `limit` tokens of a prompt."""
    kept: list[Segment] = []
    for kind, source, count in prompt:
        count = min(count, limit)
        if count:
            kept.append((kind, source, count))
        limit -= count
    return kept
