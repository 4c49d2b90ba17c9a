# SPDX-License-Identifier: Apache-2.0
"""The uncertain half of the memory model: constants fitted to measurements.

The layout of the cache (``layout``) follows from vLLM's source.  What activations, CUDA
graphs, the kernel autotuner and the runtime take does not: it is fitted here, and only here.
benchmarks/memory_observations.yml lists the measurements, and a unit test holds every
constant against their bounds.  Sources: see docs/sources.md.  Unit: GiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fit:
    """The fitted constants of one kind of device; what is left out takes nothing there."""

    #: What vLLM's profile counts against the budget beside weights and activations: what the free memory shrank by.
    #: Where the GPU's memory is the host's, that is MemAvailable, so the CUDA context and the processes' growth count
    #: (vllm/utils/mem_utils.py, MemorySnapshot.measure); elsewhere only what is on the card does.
    runtime_gib: float
    #: Activations: live tensors of ``tokens x hidden_size`` elements.
    hidden_tensors: float = 0.0
    #: Activations of a dense layer's MLP: live tensors of ``tokens x intermediate_size`` elements.
    dense_tensors: float = 0.0
    #: What torch.compile keeps besides: tensors of ``tokens x hidden_size`` elements; nothing with ``--enforce-eager``.
    compiled_hidden_tensors: float = 0.0
    #: Logits at the end of a step: bytes for each word of the vocabulary and sequence.
    logits_bytes: float = 0.0
    #: Activations: live copies of what the experts read and write,
    #: ``tokens x experts_per_token x (input + inner width)`` elements.
    expert_tensors: float = 0.0
    #: FlashInfer's FP4 kernels: further copies, for the autotuner's high-water mark.
    autotuner_expert_tensors: float = 0.0
    #: The MTP head's own pass: further tensors of ``tokens x hidden_size`` elements.
    draft_hidden_tensors: float = 0.0
    #: CUDA graphs; nothing with ``--enforce-eager``.
    graphs_gib: float = 0.0
    #: NCCL, all-reduce workspaces and the Ray worker, on each of several nodes.
    distributed_gib: float = 0.0
    #: Host processes of the engine, which start after an idle node's MemAvailable was read.
    host_processes_gib: float = 0.0
    #: What a long prefill takes on top of the budget: tensors of ``tokens x hidden_size`` elements.
    prefill_tensors_outside_budget: float = 0.0
    #: What stays outside the budget even of a small model that prefills.
    least_outside_budget_gib: float = 0.0
    #: Largest share of the node's memory that a budget may take.
    largest_share: float = 1.0


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
CPU = Fit(runtime_gib=2.0)

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
