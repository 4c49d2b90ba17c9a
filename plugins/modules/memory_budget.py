#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: memory_budget
short_description: Say whether a model fits this node, and what to change when it does not
version_added: 0.1.0
description:
  - Computes, without a GPU and without weights, what an engine takes of this node's unified memory (weights,
    activations, vLLM's cache, host), and judges whether it starts and survives a long prompt.
  - The layout of the cache follows the source of the vLLM release given; what cannot be computed is fitted to published
    measurements. C(docs/memory.md) explains both.
  - Run it on every node of a cluster and give the results to P(gb10.cluster.tightest#filter), or on the control node
    with O(mem_total_gib) and O(mem_available_gib) for a cluster that is not there.
  - A refusal is a result, not a failure of the task; only arguments that contradict one another fail.
options:
  geometry:
    description:
      - The shape of the model, as C(docs/memory.md) lists it.
      - One of O(geometry), O(config_json) and O(measured) is needed.
    type: dict
  config_json:
    description:
      - Path on the node to the C(config.json) of the model's repository, or to the directory with it.
        The shape is read from it for the architectures that C(docs/memory.md) lists.
      - A file that is not there and any other architecture give the verdict V(unknown), or the one that follows from
        O(measured).
    type: path
  measured:
    description:
      - Sizes of the cache that were measured, for a model whose shape is not known or has no rule here.
      - The verdict is then estimated from the point nearest to the pool that this configuration leaves, and is
        at best V(tight).
    type: list
    elements: dict
    suboptions:
      pool_gib:
        description: Size of the cache on each rank in GiB.
        type: float
        required: true
      tokens:
        description: Tokens that it held, as vLLM's log states them.
        type: int
        required: true
      source:
        description: Where this was published.
        type: str
        default: no source
  draft_geometry:
    description: The shape of a draft model with weights of its own, with the keys of O(geometry).
    type: dict
  draft_config_json:
    description: Path on the node to the C(config.json) of the draft model, or to the directory with it.
    type: path
  draft_weights_gib:
    description: Size of the draft model's weight files in GiB; V(0) where the checkpoint's own head drafts.
    type: float
    default: 0
  draft_has_layers:
    description: Whether a model drafts; false for a search in the text (methods C(ngram) and C(suffix)).
    type: bool
    default: true
  weights_gib:
    description: Size of the repository's weight files, MTP head included, in GiB.
    type: float
    required: true
  weights_path:
    description: Directory of the weights on the node, whose files count when O(weights_gib) is 0.
    type: path
  vllm_version:
    description: >-
      Version of vLLM in the image, such as V(0.22.1). Blocks a sequence and the meaning of the logged number of
      tokens differ between releases.
    type: str
    required: true
  tensor_parallel_size:
    description: Ranks that the model is split over, one a node.
    type: int
    default: 1
  expert_parallel:
    description: Whether whole experts are spread over the ranks (C(--enable-expert-parallel)).
    type: bool
    default: false
  kv_cache_dtype:
    description: C(--kv-cache-dtype). V(auto) is the dtype of the activations.
    type: str
    default: auto
    choices:
      [auto, bfloat16, float16, fp8, fp8_e4m3, fp8_e5m2, fp8_inc, int8_per_token_head, fp8_per_token_head, nvfp4,
       fp8_ds_mla, nvfp4_ds_mla]
  ssm_dtype:
    description: C(--mamba-ssm-cache-dtype). V(auto) is the model's own.
    type: str
    default: auto
    choices: [auto, float32, float16, bfloat16]
  max_model_len:
    description: >-
      Longest sequence in tokens. V(-1) is vLLM's C(auto), the longest of which one fits; RV(max_model_len) is what it
      comes to.
    type: int
    required: true
  max_num_seqs:
    description: Sequences that run at once. Without it vLLM's default for this much memory.
    type: int
  max_num_batched_tokens:
    description: Tokens of one step. Without it vLLM's default for this much memory.
    type: int
  speculative_tokens:
    description: Tokens that the MTP head proposes in a step; V(0) is without MTP.
    type: int
    default: 0
  budget_gib:
    description:
      - Budget of the engine in GiB (C(--gpu-memory-utilization-gb) of the mod C(gpu-mem-util-gb)).
      - One of O(budget_gib), O(gpu_memory_utilization) and O(kv_cache_memory_gib) is needed.
    type: float
  gpu_memory_utilization:
    description: Share of the node's memory; beside O(kv_cache_memory_gib) it only moves vLLM's start-up check.
    type: float
  kv_cache_memory_gib:
    description: Size of the cache itself (C(--kv-cache-memory-bytes)); the rest comes on top.
    type: float
  enable_prefix_caching:
    description: Whether prefixes are cached. Without it the release's default for this kind of model.
    type: bool
  mamba_cache_mode:
    description: C(--mamba-cache-mode). Without it the release's default.
    type: str
    choices: [none, align, all]
  block_granularity:
    description: Tokens of the smallest block of the attention kernel. Defaults to 16, and to 128 with O(device=cpu).
    type: int
  async_scheduling:
    description: Whether two steps overlap (C(--async-scheduling)); layers with a window keep the tokens of both.
    type: bool
    default: true
  pipeline_parallel_size:
    description: Stages that the layers are split over (C(--pipeline-parallel-size)), one a node.
    type: int
    default: 1
  decode_context_parallel_size:
    description: Ranks over which the tokens of a sequence are spread (C(--decode-context-parallel-size)).
    type: int
    default: 1
  hybrid_kv_cache_manager:
    description: Whether layers with a window keep their window only; false with C(--disable-hybrid-kv-cache-manager).
    type: bool
    default: true
  enforce_eager:
    description: Whether torch.compile and CUDA graphs are off.
    type: bool
    default: false
  fp4_backend:
    description: >-
      Kernels for NVFP4 weights. FlashInfer's autotuner keeps memory that Marlin does not take. Other models ignore it.
    type: str
    default: marlin
    choices: [marlin, flashinfer]
  device:
    description: >-
      V(cuda) for a GB10; V(cpu) for vLLM's CPU build; V(auto) for an image that was not asked yet, which takes V(cuda)
      on a node with NVIDIA's driver and V(cpu) on any other.
    type: str
    default: cuda
    choices: [cuda, cpu, auto]
  floor_gib:
    description: MemAvailable that must remain during a long prefill.
    type: float
    default: 0.5
  firm_cap_gib:
    description: Budget that is refused on this cluster whatever is computed.
    type: float
  mem_total_gib:
    description: Memory of the node. Read from C(/proc/meminfo) when not given.
    type: float
  mem_available_gib:
    description:
      - What the engine will find free when it starts, its own host processes already running.
      - Without it, C(MemAvailable) of C(/proc/meminfo) less the fitted size of those processes;
        with only O(mem_total_gib) given, what the tightest measured box of that size had.
    type: float
  reclaim_gib:
    description: >-
      What stopping the engine that runs on the node now gives back, added to C(MemAvailable). For the check of a
      model while another one serves.
    type: float
    default: 0
  engine_units:
    description: Patterns of units of engines, which will stop; while one is active, the node is judged by its size.
    type: list
    elements: str
    default: []
    version_added: 0.2.0
extends_documentation_fragment:
  - gb10.cluster.attributes.reads
attributes:
  platform:
    platforms: posix
"""

EXAMPLES = r"""
- name: Judge a model on every node
  gb10.cluster.memory_budget:
    geometry: "{{ model_spec.geometry }}"
    weights_gib: 329
    vllm_version: 0.22.1
    tensor_parallel_size: 4
    kv_cache_dtype: fp8
    max_model_len: 262144
    max_num_seqs: 6
    max_num_batched_tokens: 8192
    speculative_tokens: 3
    budget_gib: 108
    firm_cap_gib: 110
  register: budget

- name: Refuse what the tightest node cannot carry
  ansible.builtin.assert:
    that: tightest.verdict in ['fits', 'tight']
    fail_msg: "{{ tightest.reason }}"
  vars:
    budgets: "{{ ansible_play_hosts | map('extract', hostvars, 'budget') }}"
    tightest: "{{ budgets | gb10.cluster.tightest(ansible_play_hosts) }}"
  run_once: true

- name: Plan for a cluster that has not arrived yet
  gb10.cluster.memory_budget:
    config_json: /srv/models/organisation/model
    weights_gib: 17.7
    vllm_version: 0.22.1
    kv_cache_dtype: fp8
    max_model_len: 8192
    max_num_seqs: 1
    gpu_memory_utilization: 0.2
    enforce_eager: true
    mem_total_gib: 121.69
  delegate_to: localhost
"""

RETURN = r"""
verdict:
  description: >-
    V(fits), V(tight) (accepted, with little to spare), V(refused) (would not start, or not survive) or
    V(unknown) (too little is known of the model or the version).
  returned: always
  type: str
  sample: tight
reasons:
  description: Why, one sentence each.
  returned: always
  type: list
  elements: str
notes:
  description: Assumptions and remarks that do not change the verdict.
  returned: always
  type: list
  elements: str
missing:
  description: What would have to be known. Empty unless the verdict is V(unknown) or rests on O(measured).
  returned: always
  type: list
  elements: str
suggestions:
  description: >-
    What to change, in order: MTP, max_num_seqs, the budget, then the rest. Empty when the model fits.
  returned: always
  type: list
  elements: dict
  contains:
    order:
      description: Its place.
      type: int
    action:
      description: A sentence with the GiB in it.
      type: str
    change:
      description: Options of C(vllm serve) with their new values; null removes one.
      type: dict
    frees_gib:
      description: GiB that it frees on each node, or moves between host and cache.
      type: float
    resolves:
      description: Whether the verdict improves with this change alone.
      type: bool
max_model_len:
  description: Longest sequence in tokens, as given or as C(auto) comes to. Null when nothing could be computed.
  returned: always
  type: int
weights_gib_per_rank:
  description: Weights of one rank in GiB. This and the following are null when nothing could be computed.
  returned: always
  type: float
  sample: 82.25
kv_bytes_per_token:
  description: Bytes that all attention layers of one rank keep of a token.
  returned: always
  type: int
  sample: 3328
attn_block_tokens:
  description: Tokens of an attention block.
  returned: always
  type: int
  sample: 4352
padding_percent:
  description: By how much a recurrent state is padded to fill a page.
  returned: always
  type: float
  sample: 0.929
cache_mode:
  description: Mode in which recurrent states are kept (V(none), V(align) or V(all)).
  returned: always
  type: str
  sample: all
recurrent_state_mib_per_seq:
  description: MiB of the cache that the recurrent states of one sequence of O(max_model_len) take, padding included.
  returned: always
  type: float
kv_gib_per_sequence:
  description: GiB of the cache that one sequence of O(max_model_len) takes, recurrent states included.
  returned: always
  type: float
  sample: 4.276
kv_pool_gib:
  description: Size of the cache in GiB; negative when the budget does not even cover the rest.
  returned: always
  type: float
kv_pool_blocks:
  description: Blocks of the cache.
  returned: always
  type: int
unsized:
  description: >-
    Whether the verdict is V(unknown) because files are not on the node yet. O(weights_gib) is 0 and O(weights_path) has
    no weights, or O(config_json) or O(draft_config_json) is a directory with neither a configuration nor weights.
  returned: always
  type: bool
kv_cache_tokens:
  description: Size of the cache in tokens, as this release of vLLM logs it.
  returned: always
  type: int
max_concurrency:
  description: Sequences of O(max_model_len) that fit into the cache at once.
  returned: always
  type: float
budget_gib:
  description: What the engine takes in all.
  returned: always
  type: float
mem_total_gib:
  description: Memory of the node.
  returned: always
  type: float
mem_available_gib:
  description: What the engine will find free.
  returned: always
  type: float
headroom_gib:
  description: What remains free during a long prefill.
  returned: always
  type: float
safe_ceiling_gib:
  description: The largest budget that this node carries with these settings.
  returned: always
  type: float
breakdown:
  description: >-
    GiB by part: weights, runtime, activations, autotuner, draft, graphs, distributed and pool make up the budget;
    the prefill outside the budget and the floor come on top.
  returned: always
  type: dict
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.module_utils._memory.answer import answer
from ansible_collections.gb10.cluster.plugins.module_utils._memory.geometry import GeometryError
from ansible_collections.gb10.cluster.plugins.module_utils._memory.inputs import (
    ACTIVE_UNITS,
    MEMINFO,
    node_memory,
    not_moved_yet,
    read_config,
    weights_there_gib,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.kv import CACHE_MODES, KV_CACHE_DTYPES, SSM_DTYPES
from ansible_collections.gb10.cluster.plugins.module_utils._memory.settings import (
    AUTO,
    DEVICES,
    FP4_BACKENDS,
    Budget,
    MemoryModelError,
)
from ansible_collections.gb10.cluster.plugins.module_utils._memory.verdict import unknown

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "geometry": {"type": "dict"},
    "config_json": {"type": "path"},
    "measured": {
        "type": "list",
        "elements": "dict",
        "options": {
            "pool_gib": {"type": "float", "required": True},
            "tokens": {"type": "int", "required": True, "no_log": False},
            "source": {"type": "str", "default": "no source"},
        },
    },
    "draft_geometry": {"type": "dict"},
    "draft_config_json": {"type": "path"},
    "draft_weights_gib": {"type": "float", "default": 0},
    "draft_has_layers": {"type": "bool", "default": True},
    "weights_gib": {"type": "float", "required": True},
    "weights_path": {"type": "path"},
    "vllm_version": {"type": "str", "required": True},
    "tensor_parallel_size": {"type": "int", "default": 1},
    "expert_parallel": {"type": "bool", "default": False},
    "kv_cache_dtype": {"type": "str", "default": "auto", "choices": list(KV_CACHE_DTYPES)},
    "ssm_dtype": {"type": "str", "default": "auto", "choices": list(SSM_DTYPES)},
    "max_model_len": {"type": "int", "required": True},
    "max_num_seqs": {"type": "int"},
    "max_num_batched_tokens": {"type": "int", "no_log": False},
    "speculative_tokens": {"type": "int", "default": 0, "no_log": False},
    "budget_gib": {"type": "float"},
    "gpu_memory_utilization": {"type": "float"},
    "kv_cache_memory_gib": {"type": "float"},
    "enable_prefix_caching": {"type": "bool"},
    "mamba_cache_mode": {"type": "str", "choices": list(CACHE_MODES)},
    "block_granularity": {"type": "int"},
    "async_scheduling": {"type": "bool", "default": True},
    "pipeline_parallel_size": {"type": "int", "default": 1},
    "decode_context_parallel_size": {"type": "int", "default": 1},
    "hybrid_kv_cache_manager": {"type": "bool", "default": True},
    "enforce_eager": {"type": "bool", "default": False},
    "fp4_backend": {"type": "str", "default": "marlin", "choices": list(FP4_BACKENDS)},
    "device": {"type": "str", "default": "cuda", "choices": [*DEVICES, AUTO]},
    "floor_gib": {"type": "float", "default": 0.5},
    "firm_cap_gib": {"type": "float"},
    "mem_total_gib": {"type": "float"},
    "mem_available_gib": {"type": "float"},
    "reclaim_gib": {"type": "float", "default": 0},
    "engine_units": {"type": "list", "elements": "str", "default": []},
}


def run(params: dict[str, Any], meminfo: Path = MEMINFO) -> Budget:
    """Return the verdict for the module's arguments.

    :raises ValueError: the arguments are wrong; the message is one or more sentences
    """
    path = params.pop("weights_path")
    if path and params["weights_gib"] == 0:
        params["weights_gib"] = weights_there_gib(Path(path))
        if params["weights_gib"] == 0:
            return unknown([f"The size of the model is not known, and {path} holds no weights yet."])
    total, available = node_memory(params, meminfo)
    return answer(
        params | {"mem_total_gib": total, "mem_available_gib": available}, lambda path: read_config(Path(path))
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENT_SPEC,
        mutually_exclusive=[("geometry", "config_json"), ("draft_geometry", "draft_config_json")],
        required_one_of=[("geometry", "config_json", "measured")],
        supports_check_mode=True,
    )
    try:
        params = dict(module.params)
        patterns = params.pop("engine_units")
        params["serving"] = bool(patterns and module.run_command([*ACTIVE_UNITS, *patterns])[1].strip())
        budget = run(params)
        weights_gib = params["weights_gib"]
        configs = [Path(params[name]) for name in ("config_json", "draft_config_json") if params[name]]
    except (GeometryError, MemoryModelError) as error:
        module.fail_json(msg=" ".join(error.problems), problems=error.problems)
    except ValueError as error:
        module.fail_json(msg=str(error), problems=[str(error)])
    unsized = (bool(module.params["weights_path"]) and not weights_gib) or (
        budget.verdict == "unknown" and any(map(not_moved_yet, configs))
    )
    if unsized:
        module.warn(f"{budget.missing[0]} The check is done again when they are there.")
    module.exit_json(changed=False, unsized=unsized, **budget.as_dict())


if __name__ == "__main__":
    main()
