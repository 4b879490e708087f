"""The laws that every run is checked against. A broken law is a bug of the simulator, never of the user."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.engine.recorder import CUT, FINISHED, REJECTED
from sim.results.gaps import Floats
from sim.results.metrics import in_system, peak_concurrency, segment_s
from sim.results.result import Columns

RELATIVE = 1e-9
"""Two sums of the same times may differ by rounding, of one part in 1e9 at most."""

Check = dict[str, Any]
"""{name, held, detail}"""


def run_checks(
    requests: Columns,
    steps: Columns,
    irregular_gaps_s: Floats,
    end_s: float,
    min_iteration_s: Floats | float = 0.0,
    concurrency: int | None = None,
    max_model_len: int | None = None,
) -> list[Check]:
    """Every law on the records of one run, in a fixed order.

    Args:
        end_s: when the clock stopped, or the last client had its last token, whichever is later.
        min_iteration_s: for each segment (or all alike), the bytes an iteration must read over the HBM bandwidth.
        concurrency: users of a closed loop; None for an open one.
        max_model_len: most tokens of prompt and output, at which the engine ends a request; None: no limit.
    """
    checks = [
        requests_add_up(requests),
        tokens_conserved(requests, max_model_len),
        life_in_order(requests, end_s),
        littles_law(requests, end_s),
        gaps_add_up(requests, steps, irregular_gaps_s),
        no_iteration_too_short(steps, min_iteration_s),
    ]
    return checks if concurrency is None else [*checks, closed_loop_bound(requests, concurrency, end_s)]


def _check(name: str, held: bool | np.bool_, detail: str) -> Check:
    return {"name": name, "held": bool(held), "detail": detail}


def requests_add_up(requests: Columns) -> Check:
    """Every request finished, was rejected or was cut off by the end of the run."""
    counts = [int((requests["status"] == status).sum()) for status in (FINISHED, REJECTED, CUT)]
    sent = len(requests["status"])
    detail = f"{counts[0]} finished + {counts[1]} rejected + {counts[2]} cut = {sum(counts)} of {sent} sent"
    return _check("requests add up", sum(counts) == sent, detail)


def tokens_conserved(requests: Columns, max_model_len: int | None = None) -> Check:
    """Tokens asked = generated + those of rejected requests + those cut off + those over `max_model_len`.

    A finished request got all of its own up to that length.
    """
    asked, generated, status = requests["output_tokens"], requests["generated_tokens"], requests["status"]
    over = over_length(requests, max_model_len)
    missing = asked - generated - over
    rejected, cut = int(missing[status == REJECTED].sum()), int(missing[status == CUT].sum())
    whole = (
        (missing[status == FINISHED] == 0).all() and (generated[status == REJECTED] == 0).all() and (missing >= 0).all()
    )
    total = int(generated.sum()) + rejected + cut + int(over.sum())
    detail = f"{int(asked.sum())} asked = {int(generated.sum())} generated + {rejected} rejected + {cut} cut"
    if over.any():
        detail += f" + {int(over.sum())} over max_model_len"
    return _check("tokens conserved", whole and total == int(asked.sum()), detail)


def over_length(requests: Columns, max_model_len: int | None) -> NDArray[np.int64]:
    """Tokens of each finished request that it did not get because prompt and output together reached `max_model_len`."""
    asked = np.asarray(requests["output_tokens"], dtype=np.int64)
    if max_model_len is None:
        return np.zeros_like(asked)
    over = np.clip(requests["input_tokens"] + asked - max_model_len, 0, None)
    return np.where(requests["status"] == FINISHED, over, 0)


def life_in_order(requests: Columns, end_s: float) -> Check:
    """Arrival <= scheduled <= first token <= finish <= end of the run, for every request as far as it came."""
    finished = requests["status"] == FINISHED
    stamps = [requests[name] for name in ("arrival_s", "scheduled_s", "first_token_s", "finish_s")]
    # NaN compares as False: a stamp that is missing is no disorder, save for a finished request, which needs all four
    disorder = sum(int((later < earlier).sum()) for earlier, later in itertools.pairwise(stamps))
    disorder += int((stamps[3] > end_s * (1 + RELATIVE)).sum())
    disorder += sum(int(np.isnan(stamp[finished]).sum()) for stamp in stamps)
    return _check("life in order", disorder == 0, f"{disorder} stamps out of order in {len(finished)} requests")


def littles_law(requests: Columns, end_s: float) -> Check:
    """Mean number in the system = throughput x mean time in it, the left side as the exact integral over events."""
    arrived = in_system(requests, end_s)
    arrival = requests["arrival_s"][arrived]
    finish = requests["finish_s"][arrived]
    left = np.where(np.isnan(finish), end_s, finish)
    if not len(arrival) or end_s <= 0:
        return _check("Little's law", True, "nobody was in the system")
    times = np.concatenate([arrival, left])
    change = np.concatenate([np.ones(len(arrival)), -np.ones(len(left))])
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(change[order])
    integral = float((inside[:-1] * np.diff(times[order])).sum())
    number = integral / end_s
    product = len(arrival) / end_s * float((left - arrival).mean())
    held = abs(number - product) <= RELATIVE * max(abs(number), abs(product)) and inside.min() >= 0
    detail = f"{number:.6g} in the system; {len(arrival) / end_s:.6g}/s x {(left - arrival).mean():.6g} s"
    return _check("Little's law", held, detail)


def gaps_add_up(requests: Columns, steps: Columns, irregular_gaps_s: Floats) -> Check:
    """There are as many gaps as tokens after the first, and they last as long as it is from first to last token.

    Gaps come from the steps, tokens from the requests. Without a last stamp (a request was cut) only numbers count.
    """
    begun = ~np.isnan(requests["first_token_s"])
    tokens = int(np.maximum(requests["generated_tokens"][begun] - 1, 0).sum())
    gaps = int((steps["itl_tokens"] * steps["iterations"]).sum()) + len(irregular_gaps_s)
    gaps += (
        int(steps["extra_tokens"].sum()) if "extra_tokens" in steps else 0
    )  # accepted together: no time between them
    finished = ~np.isnan(requests["finish_s"][begun])
    decode_s = float((requests["finish_s"][begun] - requests["first_token_s"][begun])[finished].sum())
    # not np.dot: it wakes the threads of a BLAS, which then wait busily, and rounds by their number
    gap_s = float((steps["itl_tokens"] * segment_s(steps)).sum()) + float(np.sum(irregular_gaps_s))
    held = gaps == tokens
    detail = f"{gaps} gaps for {tokens} tokens after the first"
    if finished.all() and len(finished):
        # a stamp late on the clock is known to fewer decimals: 8 us after 1,600 years
        rounding_s = 2 * len(finished) * float(np.spacing(requests["finish_s"][begun].max()))
        held = held and abs(gap_s - decode_s) <= RELATIVE * max(gap_s, decode_s) + rounding_s
        detail += f"; {gap_s:.9g} s of gaps, {decode_s:.9g} s of decoding"
    return _check("gaps add up", held, detail)


def no_iteration_too_short(steps: Columns, min_iteration_s: Floats | float) -> Check:
    """No iteration is shorter than the bytes it must read over the HBM bandwidth."""
    last = steps["first_s"] + (steps["iterations"] - 1) * steps["growth_s"]
    shortest = np.minimum(steps["first_s"], last)
    short: NDArray[np.bool_] = shortest < np.asarray(min_iteration_s) * (1 - RELATIVE)
    if not len(shortest):
        return _check("no iteration too short", True, "no iteration")
    bound = float(np.max(min_iteration_s))
    detail = f"shortest {shortest.min():.6g} s, bound at most {bound:.6g} s, {int(short.sum())} below"
    return _check("no iteration too short", not short.any(), detail)


def closed_loop_bound(requests: Columns, concurrency: int, end_s: float) -> Check:
    """A closed loop never has more requests in flight than users."""
    peak = peak_concurrency(requests, end_s)
    return _check("closed loop", peak <= concurrency, f"at most {peak} in flight for {concurrency} users")
