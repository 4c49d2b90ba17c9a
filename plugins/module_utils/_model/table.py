# SPDX-License-Identifier: Apache-2.0
"""Every key of the model dictionary, in the order of docs/model_spec.md.  Data."""

from __future__ import annotations

from typing import Any

#: Ansible's argument-spec notation: the same table validates, and documents (scripts/model_spec_page.py).
MODEL_SPEC: dict[str, dict[str, Any]] = {
    "name": {
        "type": "str",
        "required": True,
        "description": "What -e model= takes: lower-case letters, digits, dots and dashes.",
        "example": "my-model",
    },
    "repo": {
        "type": "str",
        "required": True,
        "description": "Repository on the Hugging Face hub, and the directory below the weights root.",
        "example": "organisation/model",
    },
    "revision": {
        "type": "str",
        "default": "main",
        "description": "Branch, tag or commit of the repository.",
        "example": "main",
    },
    "drafter": {
        "type": "dict",
        "default": {},
        "options": {
            "repo": {
                "type": "str",
                "required": True,
                "description": "Repository of the draft model that speculative-config loads, moved beside the target.",
                "example": "organisation/model-drafter",
            },
            "revision": {
                "type": "str",
                "default": "main",
                "description": "Branch, tag or commit of that repository.",
                "example": "main",
            },
            "size_gib": {
                "type": "float",
                "default": 0,
                "description": "Size of the draft model's weight files together, in GiB; 0 when it is not known.",
                "example": 3.5,
            },
            "geometry": {
                "type": "dict",
                "default": {},
                "description": "Shape of the draft model, with the keys of geometry.",
                "example": {"layers": 5, "hidden_size": 4096},
            },
        },
        "description": "A draft model with weights of its own; serve.speculative-config says how it is used.",
        "example": {"repo": "organisation/model-drafter", "size_gib": 3.5},
    },
    "prepared_data": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {
                "type": "str",
                "required": True,
                "description": "Its name: lower-case letters, digits, dots and dashes.",
                "example": "tables",
            },
            "command": {
                "type": "list",
                "elements": "str",
                "required": True,
                "description": "Command in the image; {model} is the model's directory, {output} where it writes.",
                "example": ["python3", "-m", "make_tables", "{model}", "{output}"],
            },
            "mount": {
                "type": "str",
                "required": True,
                "description": "Where the engine's container sees the data, read-only.",
                "example": "/data/tables",
            },
            "size_gib": {
                "type": "float",
                "required": True,
                "description": "Size of the data on disk, in GiB.",
                "example": 48,
            },
            "env": {
                "type": "dict",
                "default": {},
                "description": "Variables of the command; values are quoted text.",
                "example": {"OMP_NUM_THREADS": "8"},
            },
        },
        "description": "Data that the image makes from the weights, once on the head, and that every member mounts.",
        "example": [
            {
                "name": "tables",
                "command": ["python3", "-m", "make_tables", "{model}", "{output}"],
                "mount": "/data/tables",
                "size_gib": 48,
            }
        ],
    },
    "served_name": {
        "type": "str",
        "required": True,
        "description": "The name that clients ask for.",
        "example": "organisation/model",
    },
    "size_gib": {
        "type": "float",
        "default": 0,
        "description": "Size of all weight files together, in GiB; 0 when it is not known.",
        "example": 17.7,
    },
    "nodes": {
        "type": "int",
        "required": True,
        "description": "How many nodes take part; tensor-parallel-size x pipeline-parallel-size.",
        "example": 2,
    },
    "image": {
        "type": "str",
        "required": True,
        "description": "Image of the engine: a key of gb10_images, or a reference that is pulled as it is.",
        "example": "vllm-node",
    },
    "mods": {
        "type": "list",
        "elements": "str",
        "default": [],
        "description": "Mods that the image is built with, in this order.",
        "example": ["gpu-mem-util-gb"],
    },
    "engine": {
        "type": "str",
        "choices": ["native", "ray"],
        "default": "ray",
        "description": "How ranks meet: vLLM's own launcher or Ray; -e engine= changes it for one run.",
        "example": "native",
    },
    "ports": {
        "type": "dict",
        "options": {
            "api": {
                "type": "int",
                "default": 8000,
                "description": "Port of the OpenAI-compatible API.",
                "example": 8000,
            },
            "master": {
                "type": "int",
                "default": 29500,
                "description": "Port of the native launcher's rendezvous; each model has its own.",
                "example": 29510,
            },
            "ray": {"type": "int", "default": 6379, "description": "Port of Ray's control store.", "example": 6379},
        },
        "description": "Ports on the head.",
        "example": {"api": 8000},
    },
    "serve": {
        "type": "dict",
        "required": True,
        "description": "Long option names of vllm serve without dashes, and their values.",
        "example": {"max-model-len": 262144, "enable-prefix-caching": True},
    },
    "env": {
        "type": "dict",
        "default": {},
        "description": "Variables of the engine on every rank; values are quoted text.",
        "example": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"},
    },
    "required_env": {
        "type": "list",
        "elements": "str",
        "default": [],
        "description": "Variables without which a rank refuses to start.",
        "example": ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"],
    },
    "geometry": {
        "type": "dict",
        "default": {},
        "description": "Shape of the network, from the model's config.json; docs/memory.md lists its keys.",
        "example": {"layers": 48, "hidden_size": 4096},
    },
    "memory": {
        "type": "dict",
        "default": {},
        "description": "Limits of the memory budget, beside those in serve; docs/memory.md lists its keys.",
        "example": {"floor_gib": 6},
    },
    "ray_start_args": {
        "type": "list",
        "elements": "str",
        "default": [],
        "description": "More arguments of ray start on every rank.",
        "example": ["--num-cpus=4"],
    },
    "shm_size": {
        "type": "str",
        "default": "16g",
        "description": "Size of /dev/shm in the container, as docker run takes it.",
        "example": "16g",
    },
    "steps": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "description": "Overrides that were tried in this order, each with name, overrides and source.",
        "example": [{"name": "fewer sequences", "overrides": {"serve": {"max-num-seqs": 4}}, "source": "[S0]"}],
    },
    "provenance": {
        "type": "dict",
        "default": {},
        "options": {
            "status": {
                "type": "str",
                "required": True,
                "choices": ["published", "altered", "combined", "computed", "imported"],
                "description": "Where the launch comes from; docs/models.md says what each word means.",
                "example": "published",
            },
            "source": {
                "type": "str",
                "required": True,
                "description": "Who published it, or what it was computed or imported from, and what differs.",
                "example": "[S0] validated launch",
            },
        },
        "description": "Where the launch comes from. Shown to a reader; nothing depends on it.",
        "example": {"status": "published", "source": "[S0]"},
    },
    "expected": {
        "type": "dict",
        "default": {},
        "description": "Published figures, each with its source, for bench and for a reader.",
        "example": {"sweep": [{"concurrency": 1, "decode_tokens_per_s": 19.3, "source": "[S0]"}]},
    },
    "dynamo": {
        "type": "dict",
        "default": {},
        "description": "The model's targets on Kubernetes with NVIDIA Dynamo; docs/dynamo.md.",
        "example": {"targets": {"agg-b200-chat-mtp": {"gpu": "B200", "gpus": 4}}},
    },
    "notes": {
        "type": "list",
        "elements": "str",
        "default": [],
        "description": "What a person should know, one sentence each.",
        "example": ["Do not raise max-model-len."],
    },
}
