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
# # "46 ms becomes 500 ms or more"
#
# An article about serving a 70B model says: streaming 140 GB of weights at 3 TB/s takes 46 ms, and with tensor parallelism across
# machines a token takes 500 ms or more. The first half is arithmetic. The second depends on three things that the sentence leaves
# out: the **fabric** between the machines, the **batch**, and how many **prompt tokens** share the iteration with the decoding
# users. This notebook turns the three knobs one by one and says where the sentence holds.
#
# The smallest case has two H100s in two machines (TP2, Llama-3.1-70B in bf16): 160 all-reduces an iteration over whatever joins
# them. The same two GPUs on NVLink are the ideal. Iterations are priced in closed form, exactly as a run prices them; the runs at
# the end confirm them.

# %%
import numpy as np
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from sim import Scenario, simulate
from sim.cost.causes import INDEX
from sim.engine.deployment import Deployment
from sim.simulate import plan_memory

# %matplotlib inline

MODEL = "llama-3.1-70b"
APART = ["n0.g0", "n1.g0"]
FABRICS = {
    "NVLink": ("dgx-h100", ["n0.g0", "n0.g1"], "#0072B2"),
    "InfiniBand NDR": ("dgx-h100", APART, "#009E73"),
    "100 GbE": ("cloud-h100-100gbe", APART, "#E69F00"),
    "25 GbE": ("cloud-h100-25gbe", APART, "#D55E00"),
    "10 GbE": ("cloud-h100-10gbe", APART, "#CC79A7"),
}
CLAIM_MS, STREAM_MS, CONTEXT = 500.0, 140e9 / 3e12 * 1e3, 1024
BATCHES = np.array([1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512])
CHUNKS = np.array([64, 128, 256, 512, 1024, 2048, 4096, 8176])


def table(header, rows):
    """Rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines))


def scenario(fabric, users=16, prompt=1024, output=256, tensor=2, **overrides):
    """`users` at a time on GPUs joined by `fabric`, changed by `overrides` (dots as __)."""
    topology, placement, _ = FABRICS[fabric]
    data = {
        "model": MODEL,
        "precision": {"weights": "bf16", "kv_cache": "bf16"},
        "cluster": {"topology": topology, "nodes": 2},
        "deployment": {"tensor_parallel_size": tensor, "placement": placement},
        "engine": {"max_num_seqs": 512},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": users},
            "lengths": {"kind": "fixed", "input_tokens": prompt, "output_tokens": output},
            "num_requests": 4 * users,
        },
    }
    return Scenario.from_dict(data).with_overrides({key.replace("__", "."): value for key, value in overrides.items()})


def iteration_ms(cost, batch, chunk=0):
    """An iteration of `batch` users with 1,024 tokens of context each, and `chunk` tokens of somebody's prompt."""
    seconds = cost.token_s[batch + chunk] + cost.sampled_s[batch]
    seconds += cost.decode_fixed_s[batch] + cost.full_slope_s[batch] * batch * CONTEXT
    return 1e3 * (seconds + (cost.chunks_s([(0, chunk)]) if chunk else 0.0))


COSTS = {fabric: Deployment.of(scenario(fabric)).cost(0) for fabric in FABRICS}
memory = plan_memory(scenario("NVLink"))
most_users = int(memory.kv_tokens_capacity // (CONTEXT + 256))
print(
    f"{STREAM_MS:.1f} ms to stream 140 GB at 3 TB/s; two H100s hold {memory.kv_tokens_capacity:,} tokens: {most_users} users"
)

# %% [markdown]
# ## One all-reduce
#
# What crosses the wire after every attention and every MLP is one hidden vector a token: 16 KiB in bf16. So the wire sees the
# batch, not the model: 16 KiB for one user, 128 MiB for a full prompt chunk.

# %%
rows = []
for fabric, cost in COSTS.items():
    cells = [fabric]
    for tokens in (1, 16, 64, 512, 8192):
        _, latency_s, bandwidth_s = cost.all_reduces(tokens)
        cells.append(f"{1e6 * (latency_s + bandwidth_s):,.0f} us ({bandwidth_s / (latency_s + bandwidth_s):.0%})")
    rows.append(cells)
display(table(["one all-reduce (share of bandwidth in it)", *(f"{n:,} tokens" for n in (1, 16, 64, 512, 8192))], rows))

# %% [markdown]
# ## Batch and prompt chunk
#
# Left: nothing but decoding. Right: 16 users decode, and the engine mixes a chunk of a new prompt into the iteration (chunked
# prefill; vLLM's default budget is 8,192 tokens here). Dotted: the article's 46 ms and 500 ms. Grey: more users than the KV cache
# of two H100s holds at this context.

# %%
decode = {fabric: np.array([iteration_ms(cost, b) for b in BATCHES]) for fabric, cost in COSTS.items()}
mixed = {fabric: np.array([iteration_ms(cost, 16, n) for n in CHUNKS]) for fabric, cost in COSTS.items()}

figure = Figure(figsize=(10, 4.2), layout="constrained")
panels = figure.subplots(1, 2, sharey=True)
for axes, x, curves, title, label in (
    (panels[0], BATCHES, decode, "decode only", "users in the batch"),
    (panels[1], CHUNKS, mixed, "16 users and a prompt chunk", "prompt tokens in the iteration"),
):
    for fabric, ms in curves.items():
        axes.plot(x, ms, marker="o", markersize=3.5, color=FABRICS[fabric][2], label=fabric)
    for ms, text in ((STREAM_MS, "46 ms"), (CLAIM_MS, "500 ms")):
        axes.axhline(ms, color="black", linestyle=":", linewidth=1)
        axes.text(x[0], ms * 1.06, text, fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(x, [f"{n:,}" for n in x], fontsize=8, rotation=45)
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_title(title)
    axes.grid(alpha=0.25)
panels[0].axvspan(most_users, BATCHES[-1], color="black", alpha=0.07, linewidth=0)
panels[0].set_yticks([20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000])
panels[0].set_yticklabels(["20 ms", "50 ms", "100 ms", "200 ms", "500 ms", "1 s", "2 s", "5 s", "10 s", "20 s"])
panels[0].set_ylabel("one token of every user")
panels[0].legend(frameon=False, loc="upper left", fontsize=9)
figure.suptitle("Llama-3.1-70B on two H100s: the iteration time by what joins them")
display(figure)

# %% [markdown]
# ## Where 500 ms is reached

# %%
USERS, TOKENS = range(1, 513), range(1, 8177)


def first(values, ms_of):
    """The smallest of `values` with at least 500 ms; None if there is none."""
    return next((int(value) for value in values if ms_of(int(value)) >= CLAIM_MS), None)


limits = {
    fabric: (
        first(USERS, lambda b, cost=cost: iteration_ms(cost, b)),
        first(TOKENS, lambda n, cost=cost: iteration_ms(cost, 16, n)),
    )
    for fabric, cost in COSTS.items()
}


def wires_ms(cost, batch):
    """Latency and bandwidth of the collectives of a decode iteration."""
    causes = cost.token_causes[:, batch] + cost.sampled_causes[:, batch]
    return [1e3 * float(causes[INDEX[f"collective_{part}"]]) for part in ("latency", "bandwidth")]


rows = []
for fabric, (batch, chunk) in limits.items():
    cost = COSTS[fabric]
    rows.append(
        [
            fabric,
            *(f"{iteration_ms(cost, b):.0f} ms" for b in (1, 16)),
            "{:.1f} + {:.1f} ms".format(*wires_ms(cost, 16)),
            "never up to 512" if batch is None else f"{batch} users" + ("" if batch <= most_users else " (do not fit)"),
            "never up to 8,176" if chunk is None else f"{chunk:,} tokens",
        ]
    )
header = [
    "fabric",
    "batch 1",
    "batch 16",
    "its wires: latency + bandwidth",
    "500 ms by decoding alone at",
    "500 ms beside a prompt chunk of",
]
display(table(header, rows))

# the verdict below holds as long as these do
assert all(decode[fabric][0] < STREAM_MS for fabric in FABRICS)
assert all(ms[list(BATCHES).index(16)] < 110 for ms in decode.values())
assert limits["NVLink"][0] is None
assert limits["InfiniBand NDR"][0] is None
assert all(batch is None or batch > most_users for batch, _ in limits.values())
chunks = [chunk for _, chunk in limits.values()]
assert chunks == sorted(chunks, reverse=True)
assert chunks[-1] < 256 < chunks[2]

# %% [markdown]
# ## More machines
#
# With a GPU in each of 2, 4, 8 and 16 machines the weights a GPU reads shrink, but every all-reduce visits more machines. 16
# users decode, nothing else.

# %%
SPREAD = (2, 4, 8, 16)
spread = {}
for fabric in list(FABRICS)[1:]:
    costs = [
        Deployment.of(
            scenario(
                fabric, tensor=n, cluster__nodes=n, deployment__placement="spread", deployment__tensor_parallel_size=n
            )
        ).cost(0)
        for n in SPREAD
    ]
    spread[fabric] = [iteration_ms(cost, 16) for cost in costs]
inside = [
    iteration_ms(
        Deployment.of(scenario("NVLink", deployment__placement="pack", deployment__tensor_parallel_size=n)).cost(0), 16
    )
    for n in SPREAD[:3]
]
display(
    table(
        ["one GPU a machine, batch 16", *(f"{n} machines" for n in SPREAD)],
        [["(in one machine, NVLink)", *(f"{ms:.0f} ms" for ms in inside), "-"]]
        + [[fabric, *(f"{ms:.0f} ms" for ms in times)] for fabric, times in spread.items()],
    )
)
assert all(apart > near for times in spread.values() for apart, near in zip(times, inside, strict=False))
assert spread["10 GbE"][-1] > spread["10 GbE"][0]

# %% [markdown]
# ## Whole runs
#
# In a steady state every iteration gives each of b users a token and must also take in the prompts that keep them coming: b times
# (prompt tokens / output tokens) prompt tokens an iteration on average. 16 users who chat (about 1,024 in, 256 out) bring 64, 16
# users who ask about documents (about 2,048 in, 64 out) bring 512. The right panel above says what that costs; here it is played.
# TPOT is a user's mean gap between tokens, prompt chunks of others included; the P99 gap is one iteration with a large chunk.

# %%
MIXES = {"chat": (1024, 256), "documents": (2048, 64)}
rows, seen = [], {}
for fabric in FABRICS:
    cells = [fabric]
    for mix, (prompt, output) in MIXES.items():
        lengths = {
            "kind": "uniform",
            "input_tokens": [prompt // 2, prompt * 3 // 2],
            "output_tokens": [output // 2, output * 3 // 2],
        }
        run = simulate(scenario(fabric, workload__lengths=lengths, workload__num_requests=128))
        assert all(check["held"] for check in run.self_checks)
        seen[fabric, mix] = run.summary["mean_tpot_ms"], run.summary["p99_itl_ms"]
        cells += [f"{run.summary['mean_tpot_ms']:,.0f} ms", f"{run.summary['p99_itl_ms']:,.0f} ms"]
    rows.append(cells)
header = ["16 users, budget 8,192", *(f"{mix}: {what}" for mix in MIXES for what in ("mean TPOT", "P99 gap"))]
display(table(header, rows))
tpots = {mix: [seen[fabric, mix][0] for fabric in FABRICS] for mix in MIXES}
assert all(times == sorted(times) for times in tpots.values())
assert max(tpots["chat"]) < CLAIM_MS < tpots["documents"][3]
assert tpots["documents"][1] < CLAIM_MS

# %% [markdown]
# ## Verdict

# %%
at_16 = {fabric: ms[list(BATCHES).index(16)] for fabric, ms in decode.items()}
latency_ms = {fabric: wires_ms(cost, 16)[0] for fabric, cost in COSTS.items()}


def series(of, form="{:,.0f}", fabrics=tuple(FABRICS)):
    """ "29 (NVLink), 33 (InfiniBand NDR), ..." """
    return ", ".join(f"{form.format(of[fabric])} ({fabric})" for fabric in fabrics)


batch_limits = {fabric: batch for fabric, (batch, _) in limits.items() if batch is not None}
chunk_limits = {fabric: chunk for fabric, (_, chunk) in limits.items()}
alone = {fabric: ms[0] for fabric, ms in decode.items()}
chat, documents = ({fabric: seen[fabric, mix][0] for fabric in FABRICS} for mix in MIXES)
verdict = f"""
**Of decoding alone the sentence is false: on every fabric here, for all users that fit.** Two GPUs halve the 46 ms before the
wire adds anything. In ms, one user's token takes {series(alone)}; with 16 users {series(at_16)}: a slowdown against NVLink of at
most {max(at_16.values()) / at_16["NVLink"]:.1f}. It would take {series(batch_limits, fabrics=tuple(batch_limits))} users to reach
500 ms; {most_users} fit. The latency of 160 all-reduces never does it: {latency_ms["InfiniBand NDR"]:.1f} ms a token over
InfiniBand, {latency_ms["10 GbE"]:.1f} over Ethernet.

**Of an iteration that takes in a prompt it is true: on slow fabrics with small chunks, on fast ones with large chunks.** 500 ms
are reached beside {series(chunk_limits)} prompt tokens. On NVLink that is the prompt's own computation, elsewhere its
all-reduces.

**Of the mean token of a served user it depends on the mix.** In ms, chatting users see a TPOT of {series(chat)}; users with
documents {series(documents)}. The sentence holds where users x prompt / output, the prompt tokens of a mean iteration, exceeds
the numbers of the paragraph above: over 10 and 25 GbE under an ordinary document load, over 100 GbE with prompts about
{chunk_limits["100 GbE"] / 16:.0f} times as long as answers, over InfiniBand with {chunk_limits["InfiniBand NDR"] / 16:.0f} times.

What makes it true is **bandwidth times tokens**, not the number of machines: 16 KiB a token, 160 times an iteration.
"""
display(Markdown(verdict))
