# SPDX-License-Identifier: Apache-2.0
"""What goes together: the rules that vLLM applies after its parser, each with the file that it was read in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.gb10.cluster.plugins.module_utils._weights import needs
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm.serve_check import INTEGER, NAMES, Check, show

_DRAFTED = ("custom_class", "draft_model", "eagle", "eagle3", "medusa", "mlp_speculator")
#: Pairs: an option, and the option without which vLLM refuses it or it does nothing.
_NEEDS: Sequence[Sequence[str]] = NAMES["needs"]
#: Option, structured option, and the key of that which sets the same.
_TWICE: Sequence[Sequence[str]] = NAMES["twice"]


def relations(check: Check) -> None:
    """Note the options that contradict or miss each other."""
    for name, wanted in _NEEDS:
        if check.has(name) and not check.has(wanted) and wanted not in check.given:
            check.refuse(f"serve.{name} does nothing without {wanted}; set that too.")
    for name, structured, key in _TWICE:
        inner = check.seen.get(structured)
        if check.has(name) and isinstance(inner, Mapping) and inner.get(key) is not None:
            check.refuse(f"serve.{name} and serve.{structured}.{key} set the same thing; keep one of them.")
    for name, option in check.extra.items():
        for other in option.excludes:
            if check.has(name) and check.has(other):
                check.refuse(f"serve.{name} and serve.{other} are two answers to one question; keep one of them.")
    unread = needs.patterns_of(str(check.seen.get("load-format", "auto")))
    if isinstance(unread, str):
        check.refuse(unread)
    _memory(check)
    _scheduler(check)
    _mamba(check)
    _speculation(check)
    _nodes(check)


def _memory(check: Check) -> None:
    """Check the memory budget; what fits is gb10.cluster.memory_budget's to say."""
    if check.has("gpu-memory-utilization") and check.has("kv-cache-memory-bytes"):
        # vllm/v1/worker/gpu_worker.py: the pool is taken as it is, the start-up check stays.
        check.notes.append(
            "serve.kv-cache-memory-bytes decides the pool; gpu-memory-utilization is then "
            "only how much must be free when the engine starts."
        )
    if check.seen.get("load-format") == "fastsafetensors" and not check.has("kv-cache-memory-bytes"):
        share = float(check.seen.get("gpu-memory-utilization", 0))
        if share > 0.76:
            check.notes.append(
                f"serve.load-format fastsafetensors at gpu-memory-utilization {share:g} froze "
                "a GB10 host while loading; 0.76 was the highest that did not [S4]."
            )


def _scheduler(check: Check) -> None:
    """vllm/config/scheduler.py, verify_max_model_len."""
    if not check.has("max-num-batched-tokens"):
        return
    batched = check.count("max-num-batched-tokens", 0)
    if check.has("max-num-seqs") and batched < check.count("max-num-seqs", 0):
        check.refuse(
            f"serve.max-num-batched-tokens is {batched}, below max-num-seqs "
            f"({check.seen['max-num-seqs']}): each sequence needs a token in every step."
        )
    length = check.count("max-model-len", -1)
    if check.seen.get("enable-chunked-prefill") is False and 0 < batched < length:
        check.refuse(
            f"serve.max-num-batched-tokens is {batched}, below max-model-len ({length}); "
            "without enable-chunked-prefill a prompt must fit into one step."
        )


def _mamba(check: Check) -> None:
    """vllm/config/mamba.py and vllm/config/vllm.py, stochastic rounding of the SSM cache."""
    rounding = "enable-mamba-cache-stochastic-rounding"
    if check.has(rounding):
        if check.seen.get("mamba-ssm-cache-dtype") != "float16":
            found = check.seen.get("mamba-ssm-cache-dtype", "not set")
            check.refuse(
                f"serve.{rounding} rounds a float16 cache, but mamba-ssm-cache-dtype is {found}; set it to float16."
            )
        # The Triton kernel wants compute capability 10.x; GB10 has 12.1.
        if str(check.seen.get("mamba-backend", "triton")).lower() != "flashinfer":
            check.refuse(f"serve.{rounding} needs mamba-backend: flashinfer on GB10.")
    elif check.has("mamba-cache-philox-rounds"):
        check.refuse(f"serve.mamba-cache-philox-rounds does nothing without {rounding}.")
    if (
        check.has("mamba-ssu-algorithm")
        and check.seen["mamba-ssu-algorithm"] != "auto"
        and str(check.seen.get("mamba-backend", "triton")).lower() != "flashinfer"
    ):
        check.refuse("serve.mamba-ssu-algorithm needs mamba-backend: flashinfer.")
    if check.has("mamba-block-size") and check.seen.get("enable-prefix-caching") is False:
        check.refuse("serve.mamba-block-size needs enable-prefix-caching.")


def _speculation(check: Check) -> None:
    """vllm/config/speculative.py."""
    written = check.seen.get("speculative-config")
    if not isinstance(written, Mapping):
        return
    config = {str(key).replace("-", "_"): value for key, value in written.items()}
    method = config.get("method", check.seen.get("spec-method"))
    model = config.get("model", check.seen.get("spec-model"))
    tokens = config.get("num_speculative_tokens", check.seen.get("spec-tokens"))
    where = "serve.speculative-config"
    if method is None and model is None:
        check.refuse(f"{where} names neither a method nor a draft model.")
    if tokens is None and model is None and method not in (None, "suffix"):
        check.refuse(f"{where}: method {method} needs num_speculative_tokens.")
    elif tokens is not None and (not INTEGER.match(str(tokens)) or int(tokens) < 1):
        check.refuse(f"{where}.num_speculative_tokens must be a whole number of 1 or more, found {show(tokens)}.")
    if "tensor_parallel_size" in config:
        check.refuse(f"{where}.tensor_parallel_size is refused; the key is draft_tensor_parallel_size.")
    draft, world = config.get("draft_tensor_parallel_size"), check.count("tensor-parallel-size", 1)
    if draft is not None and draft not in (1, world):
        check.refuse(
            f"{where}.draft_tensor_parallel_size is {show(draft)}; it can be 1 or tensor-parallel-size ({world})."
        )
    if method in _DRAFTED and model is None:
        check.refuse(f"{where}: method {method} needs a draft model under 'model'.")


def _nodes(check: Check) -> None:
    """vllm/config/parallel.py, vllm/engine/arg_utils.py and vllm/entrypoints/cli/serve.py."""
    nodes, rank = check.count("nnodes", 1), check.count("node-rank", 0)
    backend = check.seen.get("distributed-executor-backend")
    spread = check.count("data-parallel-size", 1) > 1
    world = check.count("tensor-parallel-size", 1) * check.count("pipeline-parallel-size", 1)
    world *= check.count("prefill-context-parallel-size", 1)
    if rank >= nodes or rank < 0:
        check.refuse(f"serve.node-rank is {rank}, but nnodes is {nodes}: ranks go from 0 to {nodes - 1}.")
    if nodes > 1:
        if backend == "ray":
            check.refuse(
                f"serve.nnodes is {nodes}, which is for the native launcher, but "
                "distributed-executor-backend is ray; keep one of them."
            )
        if not spread and world % nodes:
            check.refuse(
                f"serve.nnodes is {nodes}, but tensor-parallel-size x pipeline-parallel-size "
                f"is {world}, which cannot be shared out evenly."
            )
        if "master-addr" not in check.given:
            check.refuse(
                f"serve.nnodes is {nodes}, but master-addr is not set: every rank would look "
                "for the head on itself (127.0.0.1)."
            )
        if rank and not check.has("headless") and not spread:
            check.refuse(f"serve.node-rank is {rank}, but headless is not set: only rank 0 has an API.")
    if check.has("headless"):
        if not spread and rank == 0:
            check.refuse("serve.headless is set on rank 0, so the model would have no API at all.")
        if check.count("api-server-count", 0) > 0:
            check.refuse("serve.headless and serve.api-server-count contradict each other.")
    modes = [
        name
        for name in (
            "data-parallel-multi-port-external-lb",
            "data-parallel-external-lb",
            "data-parallel-hybrid-lb",
        )
        if check.has(name)
    ]
    if len(modes) > 1:
        check.refuse(f"serve.{' and serve.'.join(modes)} exclude each other; keep one of them.")
    if check.has("enable-eplb") and not spread and world <= 1:
        check.refuse("serve.enable-eplb balances experts between ranks, but there is only one.")
