# SPDX-License-Identifier: Apache-2.0
"""The uncertain half of the memory model: constants fitted to measurements, and those measurements.

The layout of the cache (``memory_kv``) follows from vLLM's source.  What activations, CUDA
graphs, the kernel autotuner and the runtime take does not: it is fitted here, and only here.
Each constant names the observations that bound it; ``OBSERVATIONS`` lists them, and a unit
test holds every constant against its bounds.  Sources: see docs/sources.md.  Unit: GiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fit:
    """The fitted constants of one kind of device."""

    #: What vLLM's profile counts against the budget beside weights and activations: what the free memory shrank by.
    #: Where the GPU's memory is the host's, that is MemAvailable, so the CUDA context and the processes' growth count
    #: (vllm/utils/mem_utils.py, MemorySnapshot.measure); elsewhere only what is on the card does.
    runtime_gib: float
    #: Activations: live tensors of ``tokens x hidden_size`` elements.
    hidden_tensors: float
    #: Activations of a dense layer's MLP: live tensors of ``tokens x intermediate_size`` elements.
    dense_tensors: float
    #: What torch.compile keeps besides: tensors of ``tokens x hidden_size`` elements; nothing with ``--enforce-eager``.
    compiled_hidden_tensors: float
    #: Logits at the end of a step: bytes for each word of the vocabulary and sequence.
    logits_bytes: float
    #: Activations: live copies of what the experts read and write,
    #: ``tokens x experts_per_token x (input + inner width)`` elements.
    expert_tensors: float
    #: FlashInfer's FP4 kernels: further copies, for the autotuner's high-water mark.
    autotuner_expert_tensors: float
    #: The MTP head's own pass: further tensors of ``tokens x hidden_size`` elements.
    draft_hidden_tensors: float
    #: CUDA graphs; nothing with ``--enforce-eager``.
    graphs_gib: float
    #: NCCL, all-reduce workspaces and the Ray worker, on each of several nodes.
    distributed_gib: float
    #: Host processes of the engine, which start after an idle node's MemAvailable was read.
    host_processes_gib: float
    #: What a long prefill takes on top of the budget: tensors of ``tokens x hidden_size`` elements.
    prefill_tensors_outside_budget: float
    #: What stays outside the budget even of a small model that prefills.
    least_outside_budget_gib: float
    #: Largest share of the node's memory that a budget may take.
    largest_share: float


GB10 = Fit(
    runtime_gib=1.24,
    hidden_tensors=4.5,
    dense_tensors=3.0,
    compiled_hidden_tensors=7.0,
    # The logits in the model's dtype and the sampler's copy in float32 (vllm/v1/sample/sampler.py).
    logits_bytes=6.0,
    expert_tensors=2.37,
    autotuner_expert_tensors=2.26,
    draft_hidden_tensors=4.0,
    graphs_gib=0.23,
    distributed_gib=3.2,
    host_processes_gib=2.9,
    prefill_tensors_outside_budget=18.0,
    least_outside_budget_gib=0.61,
    largest_share=0.91,
)

#: A GPU with memory of its own: compared with measurements on one, and never used for a node.
DISCRETE = replace(GB10, runtime_gib=0.225, host_processes_gib=0.0)

#: The CPU build of the lab: one process holds everything, and nothing is checked at start.
CPU = Fit(
    runtime_gib=2.0,
    hidden_tensors=0.0,
    dense_tensors=0.0,
    compiled_hidden_tensors=0.0,
    logits_bytes=0.0,
    expert_tensors=0.0,
    autotuner_expert_tensors=0.0,
    draft_hidden_tensors=0.0,
    graphs_gib=0.0,
    distributed_gib=0.0,
    host_processes_gib=0.0,
    prefill_tensors_outside_budget=0.0,
    least_outside_budget_gib=0.0,
    largest_share=1.0,
)

#: What vLLM found free on the tightest of four GX10 [S0]; taken for a box of that size when
#: nobody says what is available.
TIGHTEST_AVAILABLE_GIB = 111.27
#: Totals that are called 128 GB: 119 by `free` [S0], 121.69 by CUDA [P], 128 on the box.
LARGE_BOX_TOTAL_GIB = (115.0, 128.0)
#: Kernel, driver and base system of other sizes: 121.69 GiB total less 111.27 GiB usable.
SYSTEM_GIB = 10.42

#: Inner width of a dense layer, in hidden sizes, where the geometry does not say it: 3 to 3.5 in today's models.
USUAL_INNER_WIDTH = 3.5

#: Share of the node's memory at which engines crashed [P]; quoted in the refusal.
CRASHED_SHARE = 0.92
#: Below this many GiB left during a prefill the verdict is `tight`: a node with a floor of
#: 6 GiB still went into livelock on one cluster [P].
TIGHT_HEADROOM_GIB = 6.0
#: Free memory that must remain: the margin of the raw-GiB budget mod [S0].
DEFAULT_FLOOR_GIB = 0.5


@dataclass(frozen=True)
class Observation:
    """One measurement and the bounds that it puts on what the fit derives, in GiB or as a share.

    ``key`` names the derivation: tests/unit/plugins/module_utils/test_memory_fit.py computes it
    from the constants above.  None is unbounded.
    """

    key: str
    meaning: str
    low: float | None
    high: float | None
    source: str


OBSERVATIONS: tuple[Observation, ...] = (
    Observation(
        key="nano_beside_weights",
        meaning="Nano, one node, eager, Marlin, 8192 tokens: budget less pool less 17.7 GiB of weights; "
        "20.08 at 0.05, 20.05 at 0.15, 20.14 at 0.20, 20.12 at 0.90",
        low=2.35,
        high=2.45,
        source="[S4] memory floor and memory tables",
    ),
    Observation(
        key="nano_autotuner",
        meaning="the same with FlashInfer's FP4 kernels instead of Marlin: 4.24 - 3.3 of pool",
        low=0.89,
        high=0.99,
        source="[S4] memory table, row 2",
    ),
    Observation(
        key="nano_graphs",
        meaning="the same at 0.30 with torch.compile and CUDA graphs: 36.5 - 15.9 - 20.1",
        low=0.4,
        high=0.6,
        source="[S4] memory table, row 3",
    ),
    Observation(
        key="h200_dense_eager",
        meaning="Qwen3-8B on an H200, vLLM 0.22.1, 8192 tokens, eager: activations that vLLM's profile counted",
        low=0.80,
        high=0.89,
        source="[H] 2026-11-28",
    ),
    Observation(
        key="h200_dense_compiled",
        meaning="the same with torch.compile",
        low=1.22,
        high=1.35,
        source="[H] 2026-11-28",
    ),
    Observation(
        key="h200_graphs",
        meaning="the same: graph capturing took 0.23",
        low=0.2,
        high=0.26,
        source="[H] 2026-11-28",
    ),
    Observation(
        key="h200_moe_eager",
        meaning="Nano on the same, eager: 1.077 with weights in bfloat16, 1.17 in NVFP4",
        low=1.07,
        high=1.23,
        source="[H] 2026-11-28",
    ),
    Observation(
        key="h200_runtime",
        meaning="Qwen3-8B and Nano on an H200: budget less weights, activations and pool, 0.225 in each of four starts",
        low=0.22,
        high=0.23,
        source="[H] 2026-11-28",
    ),
    Observation(
        key="h200_logits",
        meaning="the logits of Qwen3-8B's 64 sequences, 6 bytes each in vLLM's source, are less than its layers' 0.844",
        low=0.05,
        high=0.844,
        source="[H] 2026-11-28",
    ),
    Observation(
        key="h200_outside_budget",
        meaning="a budget of 40: 40.28 in use, 40.61 after a prompt of 100K, of a model of 0.25",
        low=0.61,
        high=0.62,
        source="[H] 2026-11-28",
    ),
    Observation(
        key="nano_host_processes",
        meaning="the node's use less its idle use less the budget: 27.2 - 24.3 at 0.20, 39.5 - 36.5 at 0.30",
        low=2.8,
        high=3.1,
        source="[S4] memory table, rows 1 and 3",
    ),
    Observation(
        key="ultra_beside_weights_marlin",
        meaning="Ultra, four nodes, EP, MTP-3, 8192 tokens: beside 82.25 of weights, 95 hold no sequence of "
        "262144 tokens, not even the 1.03 that it takes without prefix caching",
        low=95 - 82.25 - 1.03,
        high=None,
        source="[P] cap ladder",
    ),
    Observation(
        key="ultra_beside_weights_flashinfer",
        meaning="the same on FlashInfer: 105 serve, so one sequence fits, which in mode `all` takes 4.28",
        low=None,
        high=105 - 82.25 - 4.28,
        source="[S0]",
    ),
    Observation(
        key="ultra_prefill",
        meaning="Ultra: a budget of 108 survives a 200K prefill in 8192 steps beside 111.27 less the margin of 0.5; "
        "110 does not, nor do 108 in steps of 16384 (half of that is for 8192)",
        low=(111.27 - 0.5 - 108) / 2,
        high=111.27 - 0.5 - 108,
        source="[S0]",
    ),
    Observation(
        key="qwen397_prefill",
        meaning="Qwen3.5-397B: 0.90 of 121.69 serves beside the same 111.27",
        low=None,
        high=111.27 - 0.5 - 0.9 * 121.69,
        source="[S1]",
    ),
    Observation(
        key="largest_share",
        meaning="108 of 119 and 0.90 serve; 0.92 crashed twice",
        low=108 / 119,
        high=CRASHED_SHARE,
        source="[S0], [S1], [P]",
    ),
    Observation(
        key="cpu_process",
        meaning="CPU build, tiny models: about 2 GB a rank on two ranks, 3 GB with a pool of 1 GiB on four",
        low=1.8,
        high=2.2,
        source="[V] 0.32.0 on x86-64",
    ),
)
