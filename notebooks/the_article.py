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
# # The article, claim by claim
#
# An article does the arithmetic of serving Llama-3-70B on the back of an envelope: the weights, the KV cache of a token, of a
# long prompt and of a batch, the time to read the weights, the network between machines. Here every number of it stands beside
# two others:
#
# - the **ledger**: exact parameter counts and bytes, and what an engine leaves for the KV cache on a real card;
# - the **simulator**: what happens when the requests really run, in time.
#
# Each claim gets a verdict: *true*, *true only if*, or *false*. GB is 1e9 bytes, GiB is 2^30. Every cell is run in CI, and the
# assertions below fail there if a number moves.

# %%
import math
from dataclasses import replace

import numpy as np
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from sim import Scenario, catalogue, simulate
from sim.cost.causes import INDEX
from sim.cost.preset import PRESETS
from sim.cost.roofline import Roofline
from sim.cost.step import StepCost
from sim.errors import DoesNotFit
from sim.hardware.gpu import load_gpu
from sim.model.operators import operators
from sim.model.precision import Precision
from sim.model.sharding import Sharding
from sim.model.transformer import load_model
from sim.results import plots
from sim.simulate import plan_memory

# %matplotlib inline

GIB, CARD_BYTES = 2**30, 80e9
CLAIMS = []


def table(header, rows):
    """Rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines))


def claim(text, article, ledger, simulator, verdict):
    """Puts a claim on the list and shows it."""
    CLAIMS.append([text, article, ledger, simulator, f"**{verdict}**"])
    display(table(["claim", "article", "ledger", "simulator", "verdict"], CLAIMS[-1:]))


def scenario(users=1, prompt=2047, output=1, **overrides):
    """So many users with equal requests of Llama-3-70B on two H100s, changed by `overrides` (dots as __)."""
    data = {
        "model": "llama-3.1-70b",
        "cluster": {"topology": "dgx-h100"},
        "deployment": {"tensor_parallel_size": 2},
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": users},
            "lengths": {"kind": "fixed", "input_tokens": prompt, "output_tokens": output},
            "num_requests": 2 * users,
        },
    }
    return Scenario.from_dict(data).with_overrides({key.replace("__", "."): value for key, value in overrides.items()})


def shipped(name):
    return Scenario.load(catalogue.files("scenarios")[name])


# %% [markdown]
# ## 1. "The weights are 140 GB: at least two 80 GB cards"
#
# 70 billion parameters of two bytes. The model has 70.55 billion. The nominal ledger sets parameters x bytes against the printed
# size of the card; the engine's ledger counts scales of quantised weights, embeddings that stay in 16 bit, activations, runtime
# overhead, and the share of the memory that the card really shows.

# %%
rows = []
for bits in ("bf16", "fp8", "int8", "int4"):
    nominal = plan_memory(scenario(precision__weights=bits), "nominal")
    exact = plan_memory(scenario(precision__weights=bits))
    cards = math.ceil(nominal.weights_bytes / CARD_BYTES)
    fitting = next(
        tp
        for tp in (1, 2, 4, 8)
        if plan_memory(scenario(precision__weights=bits, deployment__tensor_parallel_size=tp)).fits
    )
    users = plan_memory(scenario(precision__weights=bits, deployment__tensor_parallel_size=fitting)).max_sequences
    rows.append([bits, f"{nominal.weights_bytes / 1e9:.1f}", f"{exact.weights_bytes / 1e9:.1f}", cards, fitting, users])
display(
    table(
        ["weights", "nominal GB", "engine GB", "cards, nominal", "cards, engine (TP)", "users of 2k beside them"], rows
    )
)
assert plan_memory(scenario()).weights_bytes == 2 * 70_553_706_496
assert [row[3] for row in rows] == [2, 1, 1, 1]
assert [row[4] for row in rows] == [2, 1, 1, 1]

# %%
claim(
    "70B weights in 16 bit",
    "140 GB, two 80 GB cards",
    "141.1 GB, two cards (TP2)",
    f"TP2 runs with {plan_memory(scenario()).max_sequences} users of 2k beside the weights",
    "true",
)
claim(
    "int8 and int4 need fewer cards",
    "one card",
    f"{rows[2][2]} GB and {rows[3][2]} GB: one card",
    f"room for {rows[2][5]} and {rows[3][5]} users of 2k",
    "true only if few users share an int8 card",
)

# %% [markdown]
# ## 2. "A token of KV cache is 0.31 MB, and 2.5 MB under MHA"
#
# Two (key and value) x 80 layers x 8 KV heads x 128 x 2 bytes. Under multi-head attention all 64 heads keep their own keys and
# values. Such a model would also have larger projections: 79.95 billion parameters, which is the model that the simulator runs.

# %%
gqa, mha = (plan_memory(scenario(model=name), "nominal") for name in ("llama-3.1-70b", "llama-3.1-70b-mha"))
assert gqa.kv_bytes_per_token == 327_680
assert mha.kv_bytes_per_token == 8 * gqa.kv_bytes_per_token
claim(
    "KV cache of a token",
    "0.31 MB; 2.5 MB under MHA",
    f"{gqa.kv_bytes_per_token / 2**20:.4f} MiB; {mha.kv_bytes_per_token / 2**20:.1f} MiB"
    f" ({mha.parameters / 1e9:.2f} B parameters)",
    "the same",
    "true, in MiB",
)

# %% [markdown]
# ## 3. "A user of 32k needs 10 GB, under MHA 80; a user of 128k needs 40 or 320, four cards"
#
# The KV bytes are right if GB is read as GiB. But cards are sold in GB: 320 GiB are 343.6 GB, and that is five cards of 80 GB for
# the cache alone. With the weights of the MHA model it is seven; tensor parallelism has to divide 64 heads, so it is eight.

# %%
rows = []
for tokens in (32, 128):
    for name, model in (("GQA", "llama-3.1-70b"), ("MHA", "llama-3.1-70b-mha")):
        nominal = plan_memory(scenario(model=model), "nominal")
        kv_bytes = tokens * 1024 * nominal.kv_bytes_per_token
        whole = kv_bytes + nominal.weights_bytes
        one = [
            scenario(prompt=tokens * 1024 - 1, model=model, deployment__tensor_parallel_size=tp) for tp in (1, 2, 4, 8)
        ]
        fitting = next(cut.deployment.tensor_parallel_size for cut in one if plan_memory(cut).fits)
        rows.append([
            f"{tokens}k {name}", f"{kv_bytes / GIB:.0f} GiB", f"{kv_bytes / 1e9:.1f} GB", math.ceil(kv_bytes / CARD_BYTES),
            math.ceil(whole / CARD_BYTES), fitting,
        ])  # fmt: skip
display(
    table(
        ["one user", "KV cache", "the same in GB", "cards for the cache", "with weights", "what an engine needs (TP)"],
        rows,
    )
)
assert [row[1] for row in rows] == ["10 GiB", "80 GiB", "40 GiB", "320 GiB"]
assert [row[3] for row in rows] == [1, 2, 1, 5]
assert [row[5] for row in rows] == [2, 4, 4, 8]

# %%
figure = Figure(figsize=(8.5, 4.2), layout="constrained")
axes = figure.subplots()
context = np.linspace(0, 131_072, 100)
for name, colour, ledger in (("GQA", "#0072B2", gqa), ("MHA", "#D55E00", mha)):
    axes.plot(
        context / 1024, (ledger.weights_bytes + context * ledger.kv_bytes_per_token) / 1e9, color=colour, label=name
    )
for cards in (2, 4, 8):
    axes.axhline(cards * 80, color="black", linewidth=0.8, linestyle=":")
    axes.text(20, cards * 80 + (-24 if cards == 2 else 6), f"{cards} cards of 80 GB", fontsize=9)
axes.set_xlabel("tokens of one user (1024)")
axes.set_ylabel("weights and KV cache, GB (1e9 bytes)")
axes.set_xlim(0, 128)
axes.set_ylim(0, 700)
axes.legend(frameon=False, loc="center right")
axes.set_title("One user of Llama-3-70B: memory over context")
display(figure)

# %%
answers = {}
for name in (
    "32k-gqa-2xh100",
    "32k-mha-2xh100",
    "32k-mha-4xh100",
    "128k-gqa-4xh100",
    "128k-mha-4xh100",
    "128k-mha-8xh100",
):
    try:
        summary = simulate(shipped(f"llama3-70b-{name}")).summary
        answers[name] = (
            f"first token {summary['median_ttft_ms'] / 1e3:.1f} s, then {summary['median_tpot_ms']:.1f} ms a token"
        )
    except DoesNotFit as error:
        answers[name] = "refused: " + str(error).splitlines()[0].split("usable; ")[-1]
display(table(["shipped scenario", "answer"], list(answers.items())))
assert [name for name, text in answers.items() if text.startswith("refused")] == ["32k-mha-2xh100", "128k-mha-4xh100"]

# %%
claim(
    "One user of 32k",
    "10 GB; 80 GB under MHA",
    "10.0 GiB; 80.0 GiB",
    f"GQA on two cards: {answers['32k-gqa-2xh100']}",
    "true",
)
claim(
    "One user of 128k under MHA",
    "320 GB: four cards",
    "343.6 GB: five for the cache, seven with weights",
    f"four are {answers['128k-mha-4xh100']}; eight run",
    "false: five, not four",
)

# %% [markdown]
# ## 4. "64 users of 2k run out of memory on two cards"
#
# 64 x 2048 tokens are 40 GiB. The article adds 140 GB and 41 to 181 GB, mixing MB and MiB; exactly it is 184.1 GB, and two cards
# have 160. What happens then depends on the engine: a naive one admits everybody and crashes, one with an admission gate makes
# people wait, and preempts when running requests outgrow the cache.

# %%
nominal = plan_memory(scenario(users=64), "nominal")
total_bytes = nominal.weights_bytes + 64 * 2048 * nominal.kv_bytes_per_token
assert round(total_bytes / 1e9, 1) == 184.1
naive, gated, narrow, fp8 = (
    simulate(shipped(f"llama3-70b-2xh100-64way{end}")) for end in ("-oom", "", "-edge", "-fp8")
)
assert naive.status == "oom"
rows = []
for name, result in (("bf16, 0.95", gated), ("bf16, 0.90", narrow), ("fp8 weights, 0.95", fp8)):
    summary = result.summary
    rows.append([
        name, f"{result.ledger.kv_tokens_capacity:,}", result.ledger.max_sequences, result.steps["running"].max(),
        result.preemptions, f"{summary['median_ttft_ms'] / 1e3:.1f} s", f"{summary['median_tpot_ms']:.1f} ms",
        f"{summary['output_throughput']:,.0f}",
    ])  # fmt: skip
display(
    table(
        [
            "64 users of 1536 + 512",
            "KV tokens",
            "fit whole",
            "most at a time",
            "preemptions",
            "TTFT",
            "TPOT",
            "tokens/s",
        ],
        rows,
    )
)
assert gated.ledger.max_sequences < 64 < fp8.ledger.max_sequences

# %%
plots.memory_ledger(gated)

# %%
plots.timeline(gated)

# %%
crash = naive.oom
claim(
    "64 users of 2k on two cards",
    "181 GB: out of memory",
    f"{total_bytes / 1e9:.1f} GB of 160; {nominal.max_sequences} users fit, {gated.ledger.max_sequences} beside a real engine",
    f"naive engine: request {crash['request']} crashes {crash['gpu']} after {crash['time_s']:.1f} s;"
    f" with a gate all 512 requests are answered, {gated.preemptions} preemptions",
    "true only if the engine admits everybody",
)

# %% [markdown]
# ## 5. "Streaming 140 GB at 3 TB/s takes 46 ms: 21 tokens a second; two cards halve it"
#
# A decode step reads every weight once, but not the input embedding, of which it needs one row: 139.0 GB. `ideal` is the back of
# an envelope (printed peaks, no fixed costs, free collectives); `vllm` has the fitted kernels, all-reduces and engine overhead.


# %%
def envelope_ms(tensor):
    """(whole step, its read of the weights) of one user decoding on GPUs of 3 TB/s, by the back of an envelope."""
    gpu = replace(load_gpu("h100-sxm"), hbm_bytes_per_s=3e12)
    stage = operators(load_model("llama-3.1-70b"), Precision("bf16", "bf16"), Sharding(tensor=tensor))
    cost = StepCost(
        stage, Roofline(gpu, ideal=True), None, PRESETS["ideal"], max_tokens=1, max_seqs=1, async_scheduling=False
    )
    weights_s = (cost.token_causes + cost.sampled_causes)[INDEX["weights_read"], 1]
    return 1e3 * (cost.token_s[1] + cost.sampled_s[1] + cost.decode_fixed_s[1]), 1e3 * weights_s


one_ms, read_ms = envelope_ms(1)
two_ms, _ = envelope_ms(2)
assert round(140e9 / 3e12 * 1e3, 1) == 46.7
assert round(read_ms, 1) == 46.3
assert round(read_ms * 3e12 / 1e12, 1) == 139.0
assert abs(two_ms / one_ms - 0.5) < 0.002

chat = {"prompt": 128, "output": 128}
measured = {
    preset: [simulate(scenario(**chat, engine__preset=preset, deployment__tensor_parallel_size=tp)) for tp in (2, 4, 8)]
    for preset in ("ideal", "vllm")
}
tpot = {preset: [run.summary["median_tpot_ms"] for run in runs] for preset, runs in measured.items()}
display(
    table(
        ["one user on H100s (3.35 TB/s)", "TP2", "TP4", "TP8"],
        [[preset, *(f"{ms:.1f} ms" for ms in times)] for preset, times in tpot.items()],
    )
)
assert all(ideal < real for ideal, real in zip(tpot["ideal"], tpot["vllm"], strict=True))
claim(
    "Reading the weights at 3 TB/s",
    "46 ms, 21 tokens/s",
    f"46.7 ms for 140 GB; {read_ms:.1f} ms for the 139.0 GB a step reads, {1e3 / one_ms:.1f} tokens/s",
    f"TP2 on H100: {tpot['ideal'][0]:.1f} ms ideal, {tpot['vllm'][0]:.1f} ms with kernels as measured",
    "true only as a bound",
)
claim(
    "Two cards halve it",
    "23 ms",
    f"{two_ms:.1f} ms",
    f"TP8 is {tpot['vllm'][0] / tpot['vllm'][2]:.1f} times as fast as TP2, not four",
    "true only if communication and fixed costs are small",
)

# %% [markdown]
# ## 6. "Tensor parallelism belongs inside one machine"
#
# Every layer ends twice in an all-reduce: 160 a token for this model. Below, 64 users decode on the same GPUs with different
# wires between them, and the bars say where a token's milliseconds go.

# %%
WIRES = {
    "TP8, one node, NVLink": ("dgx-h100", 1, 8),
    "TP16, two nodes, 8 x 400 Gbit/s": ("dgx-h100", 2, 16),
    "TP16, two nodes, 1 x 100 Gbit/s": ("cloud-h100-100gbe", 2, 16),
    "TP16, two nodes, 1 x 25 Gbit/s": ("cloud-h100-25gbe", 2, 16),
}
runs = {
    name: simulate(
        scenario(
            users=64, prompt=512, output=256, cluster__topology=topology, cluster__nodes=nodes,
            deployment__tensor_parallel_size=tp,
        )
    )
    for name, (topology, nodes, tp) in WIRES.items()
}  # fmt: skip
GROUPS = {
    "memory (weights, KV, activations)": ("#0072B2", ("weights_read", "kv_read", "activations")),
    "compute": ("#009E73", ("compute",)),
    "all-reduce latency": ("#E69F00", ("collective_latency",)),
    "all-reduce bandwidth": ("#D55E00", ("collective_bandwidth",)),
    "fixed costs and engine": ("#888888", ("kernel_fixed", "engine_overhead")),
}
figure = Figure(figsize=(9, 3.6), layout="constrained")
axes = figure.subplots()
left = np.zeros(len(runs))
for name, (colour, causes) in GROUPS.items():
    ms = np.array([sum(run.walls_ms_per_token[cause] for cause in causes) for run in runs.values()])
    axes.barh(list(runs), ms, left=left, color=colour, label=name)
    left += ms
axes.invert_yaxis()
axes.set_xlabel("ms of a mean output token, decode only")
axes.legend(frameon=False, loc="upper right")
axes.set_title("64 users: the second wall")
display(figure)

# %%
speed = {name: run.summary["output_throughput"] for name, run in runs.items()}
display(
    table(
        ["wires", "median TPOT", "tokens/s", "tokens/s/GPU"],
        [
            [name, f"{run.summary['median_tpot_ms']:.1f} ms", f"{speed[name]:,.0f}",
             f"{run.summary['output_throughput_per_gpu']:,.0f}"]
            for name, run in runs.items()
        ],
    )
)  # fmt: skip
inside, infiniband, ethernet, _ = speed.values()
assert inside > infiniband > 3 * ethernet
claim(
    "Tensor parallelism across machines",
    "the network becomes the wall",
    "160 all-reduces a token",
    f"twice the GPUs give {infiniband / inside:.2f} times the tokens over InfiniBand, {ethernet / inside:.2f} over 100 GbE",
    "true",
)

# %% [markdown]
# ## 7. The golden rule: "one GPU before two, one machine before several"

# %%
one, two = (simulate(shipped(f"llama3-70b-{name}")) for name in ("one-gpu-int4", "two-gpus-bf16"))
display(
    table(
        ["16 users of 1024 + 256", "TTFT", "TPOT", "tokens/s", "tokens/s/GPU"],
        [
            [name, f"{run.summary['median_ttft_ms'] / 1e3:.2f} s", f"{run.summary['median_tpot_ms']:.1f} ms",
             f"{run.summary['output_throughput']:,.0f}", f"{run.summary['output_throughput_per_gpu']:,.0f}"]
            for name, run in (("one H100, int4", one), ("two H100, bf16", two))
        ],
    )
)  # fmt: skip
assert one.summary["median_tpot_ms"] < two.summary["median_tpot_ms"]
assert one.summary["median_ttft_ms"] > two.summary["median_ttft_ms"]
claim(
    "One GPU before many",
    "quantise before you add cards",
    f"{one.ledger.weights_bytes / 1e9:.1f} GB of int4 fit on one card",
    f"{one.summary['median_tpot_ms']:.1f} ms a token on one card, {two.summary['median_tpot_ms']:.1f} on two;"
    f" first token {one.summary['median_ttft_ms'] / 1e3:.1f} s against {two.summary['median_ttft_ms'] / 1e3:.1f}",
    "true only if 4 bits are good enough and prompts may wait",
)

# %% [markdown]
# ## All claims

# %%
display(table(["claim", "article", "ledger", "simulator", "verdict"], CLAIMS))
assert len(CLAIMS) == 10
