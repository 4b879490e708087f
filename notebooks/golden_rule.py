# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One card before several, one node before several
#
# The golden rule of the article: quantise until the model fits one card; if it does not, stay in one node. Here one Llama-3.1-70B
# is deployed in four ways, and the number of users goes from 1 to 128:
#
# - **one card, int4**: 37 GB of weights on one H100, arithmetic in bf16;
# - **two cards, bf16**: 141 GB over two H100s on NVLink (TP2);
# - **two nodes, bf16**: the same two cards in two machines, once over 400 Gbit/s InfiniBand, once over 100 Gbit/s Ethernet (TP2),
#   and over Ethernet as two pipeline stages (PP2).
#
# The question is where the curves cross, and why. Prompts have 512 tokens, answers 256, and an iteration takes at most 2,048
# tokens. That int4 answers as well as bf16 is for an evaluation to say, not for this simulator.

# %%
import numpy as np
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from sim import Scenario, simulate

# %matplotlib inline

BASE = Scenario.from_dict(
    {
        "name": "golden-rule",
        "model": "llama-3.1-70b",
        "cluster": {"topology": "dgx-h100"},
        "engine": {"max_num_batched_tokens": 2048, "max_num_seqs": 128},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": 1},
            "lengths": {"kind": "fixed", "input_tokens": 512, "output_tokens": 256},
        },
    }
)
TWO_NODES = {"cluster.nodes": 2, "deployment.placement": ["n0.g0", "n1.g0"]}
ETHERNET = TWO_NODES | {"cluster.topology": "cloud-h100-100gbe"}
WAYS = {
    "one card, int4": {"precision.weights": "int4"},
    "two cards, bf16": {"deployment.tensor_parallel_size": 2},
    "two nodes, bf16, InfiniBand": {"deployment.tensor_parallel_size": 2, **TWO_NODES},
    "two nodes, bf16, 100 GbE": {"deployment.tensor_parallel_size": 2, **ETHERNET},
    "two nodes, bf16, 100 GbE, PP2": {"deployment.pipeline_parallel_size": 2, **ETHERNET},
}
USERS = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128]


def run(changes, users):
    load = {
        "workload.arrivals.concurrency": users,
        "workload.num_requests": 5 * users,
        "workload.warmup_requests": users,
    }
    return simulate(BASE.with_overrides(changes | load))


results = {way: [run(changes, users) for users in USERS] for way, changes in WAYS.items()}


def column(way, key):
    return np.array([result.summary[key] for result in results[way]])


# %% [markdown]
# ## What a user feels: TPOT

# %%
figure = Figure(figsize=(9, 4), layout="constrained")
left, right = figure.subplots(1, 2)
for way in WAYS:
    left.plot(USERS, column(way, "median_tpot_ms"), "o-", markersize=3, label=way)
    right.plot(USERS, column(way, "output_throughput_per_gpu"), "o-", markersize=3, label=way)
left.set_ylabel("median TPOT (ms)")
right.set_ylabel("output tokens/s a GPU")
for chart in (left, right):
    chart.set_xscale("log", base=2)
    chart.set_xlabel("users")
    chart.set_ylim(bottom=0)
    chart.grid(alpha=0.3)
left.legend(frameon=False, fontsize=7)
display(figure)


# %% [markdown]
# ## Where they cross


# %%
def crossing(one, other, key="median_tpot_ms"):
    """Users from which `other` is better than `one` (linear between the points); None if it never is."""
    sign = -1 if key == "median_tpot_ms" else 1
    gain = sign * (column(other, key) - column(one, key))
    better = np.flatnonzero(gain > 0)
    if not len(better):
        return None
    first = better[0]
    if first == 0:
        return USERS[0]
    return float(np.interp(0, gain[first - 1 : first + 1], USERS[first - 1 : first + 1]))


one, two = "one card, int4", "two cards, bf16"
rows = []
for key, what in (
    ("median_tpot_ms", "TPOT"),
    ("output_throughput", "tokens/s in all"),
    ("output_throughput_per_gpu", "tokens/s a GPU"),
):
    for other in list(WAYS)[1:]:
        users = crossing(one, other, key)
        rows.append(f"| {what} | {other} | {'never' if users is None else f'from {users:.0f} users'} |")
display(Markdown("\n".join(["| in | this beats one card in int4 | at |", "|---|---|---|", *rows])))

# %% [markdown]
# ## Why: where a token's milliseconds go
#
# At few users a token is the read of the weights: 37 GB on one card against 71 GB on each of two. int4 wins although one card has
# half the bandwidth. With more users three things grow that int4 does not shrink: the arithmetic, which stays bf16 on one card's
# tensor cores and has to unpack the weights (compute); the prompts of others, which are arithmetic too (interference); and the
# reading of the KV cache. Two cards share all three. From there they are the faster machine, and the question becomes whether
# they are twice as fast, since they cost twice as much.

# %%
CAUSES = [
    "weights_read",
    "kv_read",
    "compute",
    "interference",
    "collective_latency",
    "collective_bandwidth",
    "kernel_fixed",
]
table = ["| users | way | " + " | ".join(CAUSES) + " |", "|---" * (len(CAUSES) + 2) + "|"]
for users in (1, 32, 128):
    for way in WAYS:
        walls = results[way][USERS.index(users)].walls_ms_per_token
        table.append(
            f"| {users} | {way} | "
            + " | ".join(f"{round(walls.get(cause, 0), 1) + 0.0:.1f}" for cause in CAUSES)
            + " |"
        )
display(Markdown("\n".join(table)))

# %% [markdown]
# ## Who runs, and who waits
#
# A TPOT only counts those who run. What the weights leave for the KV cache says how many that can be; with more users the rest
# waits for its first token, and the TPOT of the others stays flat because the batch does not grow.

# %%
rooms = {way: results[way][0].ledger.max_sequences for way in WAYS}
table = ["| way | room for | first token at 64 users (median, s) | at 128 users |", "|---|---|---|---|"]
for way in WAYS:
    waits = [results[way][USERS.index(users)].summary["median_ttft_ms"] / 1e3 for users in (64, 128)]
    table.append(f"| {way} | {rooms[way]} requests | " + " | ".join(f"{wait:.1f}" for wait in waits) + " |")
display(Markdown("\n".join(table)))

# %% [markdown]
# ## What is left of the rule
#
# - **One card before several** holds for the price of a token at every load tried: per GPU, one card in int4 is never beaten.
# - It is **wrong for what a user feels** beyond some fifty users: there the two cards on NVLink give a token sooner, and more of
#   them in all.
# - **One node before several** holds without exception here: two nodes never beat the same two cards in one. Against one card
#   in int4 they never give more tokens in all. A token comes sooner from about a hundred users on, but not because two nodes
#   are quick: bf16 leaves room for fewer than seventy users, and the others wait for seconds, while one card in int4 runs all
#   128 at once.
# - How much worse depends on the wire and on the cut. Over InfiniBand a tensor-parallel pair in two nodes loses little with few
#   users; over 100 GbE it loses more with every user, because the bytes of an all-reduce grow with the batch. A pipeline sends
#   the hidden state once instead of 160 times: slow for one user, who waits for both stages in turn, but from some twenty-five
#   users on it is the better way to use two nodes on Ethernet.

# %%
assert crossing(one, two, "output_throughput_per_gpu") is None
assert rooms[one] > 128 > 96 > rooms[two] > crossing(one, two)
assert column(one, "median_ttft_ms")[-1] < column(two, "median_ttft_ms")[-1]
assert 32 < crossing(one, two) < 64
assert 32 < crossing(one, two, "output_throughput") < 64
for way in list(WAYS)[2:]:
    assert (column(way, "median_tpot_ms") > column(two, "median_tpot_ms")).all()
    assert (column(way, "output_throughput") < column(two, "output_throughput")).all()
    assert crossing(one, way, "output_throughput") is None
assert 16 < crossing("two nodes, bf16, 100 GbE", "two nodes, bf16, 100 GbE, PP2") < 32
assert column(one, "median_tpot_ms")[0] < 0.65 * column(two, "median_tpot_ms")[0]
