"""Replays recorded decisions of vLLM's scheduler through twowalls' own and compares every iteration.

    python tests/replay_scheduler.py FILE...

Prints the first difference of each case; exit code 1 if there is any. FILE is JSON lines: a header, then one line an iteration.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from sim.engine.batch import Batch
from sim.engine.batching import VllmScheduler
from sim.engine.sequence import DECODING, OVER, Sequence
from sim.engine.versions import limits_for, newer_than_known, pool_for
from sim.errors import InputError
from sim.workload.content import SegmentContent


def expand(ids: str | list[int]) -> list[int]:
    """The ids of "0-3,7": 0, 1, 2, 3, 7."""
    if isinstance(ids, list):
        return ids
    out: list[int] = []
    for part in ids.split(",") if ids else []:
        first, _, last = part.partition("-")
        out.extend(range(int(first), int(last or first) + 1))
    return out


def load(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and iterations of a recorded case."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    return lines[0], lines[1:]


def build(header: dict[str, Any]) -> VllmScheduler:
    """The scheduler that the header's config and version describe; what the config leaves out is vLLM's default."""
    config, version = header["config"], header["vllm"]
    if config.get("policy", "fcfs") != "fcfs":
        raise ValueError(f"policy {config['policy']} is not mirrored, only fcfs")
    if newer_than_known(version):
        version = None
    pool = pool_for(
        version=version,
        num_gpu_blocks=config["num_gpu_blocks"],
        block_size=config.get("block_size", 16),
        enable_prefix_caching=config.get("enable_prefix_caching", True),
    )
    limits = limits_for(
        version=version,
        max_num_seqs=config["max_num_seqs"],
        max_num_batched_tokens=config["max_num_batched_tokens"],
        max_model_len=config["max_model_len"],
        num_gpu_blocks=config["num_gpu_blocks"],
        enable_chunked_prefill=config.get("enable_chunked_prefill", True),
        long_prefill_token_threshold=config.get("long_prefill_token_threshold", 0),
        scheduler_reserve_full_isl=config.get("scheduler_reserve_full_isl"),
        watermark=config.get("watermark", 0.0),
        async_scheduling=config.get("async_scheduling", "async" in header.get("scheduler", "").lower()),
    )
    return VllmScheduler(limits, pool)


def sequences(header: dict[str, Any]) -> dict[int, Sequence]:
    """One fresh sequence a request of the case."""
    interned: dict[tuple[object, ...], int] = {}
    out = {}
    for request in header["requests"]:
        segments = [((kind, name), tokens) for kind, name, tokens in request["prompt"]]
        content = SegmentContent(segments, ("o", request["id"]), interned)
        out[request["id"]] = Sequence(
            request["id"],
            float(request["arrival"]),
            request["prompt_len"],
            request["max_tokens"],
            header["config"]["max_model_len"],
            content,
        )
    return out


def decisions(scheduler: VllmScheduler, batch: Batch) -> dict[str, Any]:
    """The batch in the words of the recording."""
    decoding = batch.decoding
    if decoding is None:
        chunked = {seq for _, _, seq, _ in batch.chunks}
        decoding = [seq for seq in scheduler.running if decodes_now(seq, batch, chunked)]
    return {
        "adm": [[s.id, s.cached_tokens, "res" if s.preemptions else "new"] for s in batch.admitted],
        "p": [[seq.id, start, tokens] for start, tokens, seq, _ in batch.chunks],
        "d": [seq.id for seq in decoding],
        "pre": [seq.id for seq in batch.preempted],
        "run": len(scheduler.running),
        "wait": len(scheduler.waiting),
        "free": scheduler.pool.free,
    }


def decodes_now(seq: Sequence, batch: Batch, chunked: set[Sequence]) -> bool:
    """Whether `seq` decodes in `batch`: it does if it decoded before and did not end before."""
    return seq.state == DECODING and seq not in chunked


def recorded(line: dict[str, Any]) -> dict[str, Any]:
    """What the recording says of the same fields."""
    return {
        "adm": line.get("adm", []),
        "p": line.get("p", []),
        "d": expand(line.get("d", "")),
        "pre": expand(line.get("pre", "")),
        "run": line.get("run", 0),
        "wait": line.get("wait", 0),
        "free": line["free"],
    }


def replay(path: str | Path) -> str | None:
    """The first difference between the recording in a file and twowalls' scheduler, or None.

    A file that is no such recording differs, too.
    """
    try:
        return first_difference(*load(path))
    except (OSError, ValueError, KeyError, TypeError, IndexError, InputError) as error:
        return f"cannot be replayed ({type(error).__name__}: {error})"


def first_difference(header: dict[str, Any], lines: list[dict[str, Any]]) -> str | None:
    """The first difference between recorded iterations and twowalls' scheduler, or None."""
    scheduler, requests = build(header), sequences(header)
    arrivals = defaultdict(list)
    for request in header["requests"]:
        if request["prompt_len"] < header["config"]["max_model_len"]:  # others are rejected before the scheduler (E3)
            arrivals[request["arrival"]].append(request["id"])
    for line in lines:
        due = expand(line.get("add", ""))
        if due != arrivals.get(line["i"], []):
            return f"iteration {line['i']}: add is {due}, the header says {arrivals.get(line['i'], [])}"
        for id in due:
            scheduler.add(requests[id])
        mine = decisions(scheduler, scheduler.schedule())
        theirs = recorded(line)
        finished = [seq.id for seq in scheduler.update()]
        mine |= {"fin": finished, "free_end": scheduler.pool.free}
        theirs |= {"fin": expand(line.get("fin", "")), "free_end": line.get("free_end", line["free"])}
        for key, value in theirs.items():
            if mine[key] != value:
                return f"iteration {line['i']}: {key} is {mine[key]}, recorded {value}"
    if header.get("status") == "complete" and scheduler.has_work:
        return f"the recording is complete, but {len(scheduler.running) + len(scheduler.waiting)} requests are left"
    for request in header["requests"]:
        seq = requests[request["id"]]
        if seq.state != OVER:  # a token of it may be in flight where the recording was cut
            continue
        if (seq.generated_tokens, seq.preemptions) != (request["n_out"], request["n_preempt"]):
            got = f"{seq.generated_tokens} tokens, {seq.preemptions} preemptions"
            return f"request {seq.id}: {got}, recorded {request['n_out']} and {request['n_preempt']}"
    return None


def main(paths: list[str]) -> int:
    """Replays every file; prints a line each."""
    if not paths:
        print(__doc__)
        return 2
    differing = 0
    for path in paths:
        difference = replay(path)
        differing += difference is not None
        print(f"{'DIFFERS' if difference else 'same':8} {Path(path).name}{': ' + difference if difference else ''}")
    print(f"{len(paths) - differing} of {len(paths)} cases without a difference")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
