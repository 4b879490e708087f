"""Random cases at the sizes of real engines: the behaviours of the recordings with other numbers, and several of them at once."""

from __future__ import annotations

from random import Random

from .random_cases import shortened
from .scheduler import VERSIONS
from .trace import Case, Config, Request, Segment


def scaled_case(seed: int) -> Case:
    """The case of this seed: a few dozen requests, blocks of 8 to 32 tokens, budgets from a handful to 8192."""
    rng = Random(f"scaled {seed}")
    version = rng.choice(["0.33.0", "0.33.0", *VERSIONS])
    block_size = rng.choice([8, 16, 16, 16, 32])
    max_model_len = rng.choice([256, 1024, 4096])
    max_num_seqs = rng.choice([4, 16, 64, 256])
    budget = rng.choice([max_num_seqs, 48, 256, 512, 2048, 8192])
    chunked = rng.random() < 0.8
    if not chunked and rng.random() < 0.6:
        budget = max(budget, max_model_len)
    count = rng.randint(4, 28)
    prompts, longest = _prompts(rng, count, max_model_len)
    outputs = [rng.choice([1, rng.randint(1, 8), rng.randint(1, 60), rng.randint(40, 120)]) for _ in range(count)]
    wanted = sum(_length(prompt) for prompt in prompts) // block_size + count
    usable = max(int(wanted * rng.choice([0.15, 0.3, 0.6, 2.0])), 3)
    if rng.random() < 0.85:  # as the real engine demands at start-up, for the longest request at least
        usable = max(usable, -(-(longest + 120) // block_size) + rng.choice([0, 1, 3]))
    config = Config(
        version=version,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        block_size=block_size,
        num_gpu_blocks=usable + 1,
        max_model_len=max_model_len,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=rng.random() < 0.6,
        long_prefill_token_threshold=rng.choice([0, 0, 32, 100, 512]),
        scheduler_reserve_full_isl=rng.random() < 0.7,
        watermark=rng.choice([0.0, 0.0, 0.01, 0.1]),
        async_scheduling=VERSIONS[version].knows_async and rng.random() < 0.5,
        max_iters=rng.choice([150, 600]),
    )
    arrivals = _arrivals(rng, count)
    requests = [
        Request(number, arrivals[number], _length(prompts[number]), outputs[number], tuple(prompts[number]))
        for number in range(count)
    ]
    return Case(f"scaled{seed}", config, tuple(requests))


def _arrivals(rng: Random, count: int) -> list[int]:
    """All at once, in bursts, or one after another."""
    gap = rng.choice([0, 2, 10, 40])
    times, now = [], 0
    for _ in range(count):
        now += rng.randint(0, gap) if rng.random() < 0.5 else 0
        times.append(now)
    return times


def _prompts(rng: Random, count: int, max_model_len: int) -> tuple[list[list[Segment]], int]:
    """Fresh ones, ones behind a system prompt, repeats and continued chats; (prompts, tokens of the longest)."""
    system = [("s", f"system{n}", rng.randint(1, max_model_len // 3)) for n in range(rng.choice([1, 3]))]
    habit = rng.choice([(1.0, 0.0, 0.0), (0.2, 0.8, 0.0), (0.2, 0.3, 0.3)])
    prompts: list[list[Segment]] = []
    for number in range(count):
        own: Segment = ("s", f"user{number}", max(1, min(round(rng.lognormvariate(4.5, 1.2)), max_model_len // 2)))
        draw = rng.random()
        if not prompts or draw < habit[0]:
            prompt = [own]
        elif draw < habit[0] + habit[1]:
            prompt = [rng.choice(system), own]
        elif draw < sum(habit):
            earlier = rng.randrange(len(prompts))
            prompt = [*prompts[earlier], ("o", earlier, rng.randint(1, 60)), ("s", f"more{number}", rng.randint(1, 40))]
        else:
            prompt = list(rng.choice(prompts))
        prompts.append(shortened(prompt, max_model_len - 1))
    return prompts, max(_length(prompt) for prompt in prompts)


def _length(prompt: list[Segment]) -> int:
    return sum(count for _, _, count in prompt)
