# SPDX-License-Identifier: Apache-2.0
"""What is rendered for Ultra, Super and Nano, compared with the commands that their sources publish.

``published.yml`` has those commands.  Every difference stands in ``DEVIATIONS`` with its reason, and in docs/models.md:
one that is not declared fails, and so does a declared one that is no longer there or reads otherwise.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._fabric.environment import Record, network_environment
from ansible_collections.gb10.cluster.plugins.module_utils._fabric.ports import parse_capture
from ansible_collections.gb10.cluster.plugins.plugin_utils._program import build

HERE = Path(__file__).parent
REPO = HERE.parents[2]
PUBLISHED: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "published.yml").read_text(encoding="utf-8"))
MODELS = sorted(PUBLISHED)

#: The ports of the machines in [S2]: what the environment of a start is made from there.
MACHINE = Path(__file__).resolve().parents[1] / "fixtures/fabric/ring.json"
INTERFACE = "enp1s0f1np1"
HCAS = ["rocep1s0f0", "rocep1s0f1", "roceP2p1s0f0", "roceP2p1s0f1"]


class Deviation(NamedTuple):
    """One difference: what the source has, what is rendered (None: nothing), and why."""

    published: str | None
    rendered: str | None
    reason: str


SYSTEMD = "systemd keeps the container, in the foreground, and reads its log; its unit's state is the engine's."
NAMED = "Units and containers are found by vllm-<model>, so that every other engine can be stopped by its exact name."
READ_ONLY = "Only this model's directory is in the container, and nothing can write to it."
CACHE = "What the engine compiles outlives the container, apart for each image and model."
KERNELS = "Kernels that were compiled once are there at the next start."
NOFILE = "An engine of many ranks and files needs more than Docker's limit [P]."
MEMORY_MONITOR = "Ray kills at 95 % of the node's memory otherwise, which the engine uses as intended [P]."
COMPILERS = "Compilers share memory with the model that is being loaded [P]."
ENTRY = "The first process checks the variables, starts Ray where needed, and then starts vllm serve and watches it."
ENV_FILE = "Variables are in files that only root reads; the second is written at every start."
IMAGE = "Tags carry the fingerprint of all that an image is made of: `latest` may be another image on each node."
RDMA = "Without it NCCL falls back to TCP in silence [S2]."
AT_START = "Resolved on the node at every start: names and addresses differ between nodes."
EXACT = 'With "=" the names match exactly; without it NCCL takes each as a prefix.'
ONE_INTERFACE = "Control traffic takes the one interface with the fabric address; data goes by RDMA over every HCA."
OFFLINE = "Weights are on every node and verified; nothing is fetched when an engine starts [S0]."
LEAST = (
    "The engine runs as root in its container, and code of a model may run there: it gets what RDMA needs and no more."
)
LOG = "Log lines reach the journal as they are written."
USAGE = "No report goes out to vLLM's makers."

VOLUMES = (
    "/var/lib/gb10/weights/{repo}:/root/.cache/huggingface/{repo}:ro "
    "/var/lib/gb10/cache/{fingerprint}/{model}:/root/.cache/vllm /run/gb10/engine/{model}.progress:/run/gb10-engine "
    "{program}:{program}:ro"
)
#: On several nodes.
VOLUMES_TETHERED = f"{VOLUMES} /etc/gb10/engine/tether.key:/run/gb10-tether.key:ro"

#: On every model. The names of the parts are those of `flatten`.
COMMON: dict[str, Deviation] = {
    "docker --rm": Deviation(None, "true", SYSTEMD),
    "docker --init": Deviation(None, "true", SYSTEMD),
    "docker --env-file": Deviation(None, "/etc/gb10/engine/{model}.env /run/gb10/engine/{model}.env", ENV_FILE),
    "docker --entrypoint": Deviation(None, "{python}", ENTRY),
    "docker --cap-drop": Deviation(None, "ALL", LEAST),
    "docker --security-opt": Deviation(None, "no-new-privileges", LEAST),
    "env PYTHONUNBUFFERED": Deviation(None, "1", LOG),
    "env MAX_JOBS": Deviation(None, "2", COMPILERS),
    "env FLASHINFER_WORKSPACE_BASE": Deviation(None, "/root/.cache/vllm/gb10/flashinfer", KERNELS),
    "env TRITON_CACHE_DIR": Deviation(None, "/root/.cache/vllm/gb10/triton", KERNELS),
    "env TORCHINDUCTOR_CACHE_DIR": Deviation(None, "/root/.cache/vllm/gb10/inductor", KERNELS),
    "env CUTE_DSL_CACHE_DIR": Deviation(None, "/root/.cache/vllm/gb10/cute_dsl", KERNELS),
    "env VLLM_NO_USAGE_STATS": Deviation(None, "1", USAGE),
    "env VLLM_HOST_IP": Deviation(None, "{address}", AT_START),
    "env TP_SOCKET_IFNAME": Deviation(None, INTERFACE, AT_START),
}
#: On those of several nodes.
RDMA_RAY: dict[str, Deviation] = {
    "env NCCL_DEBUG": Deviation(None, "WARN", "Without it NCCL does not print which device and peer failed."),
    "env NCCL_NET": Deviation(None, "IB", RDMA),
    "env NCCL_IB_ROCE_VERSION_NUM": Deviation(None, "2", "RoCE v2, whatever GID is found first [P]."),
    "env NCCL_CROSS_NIC": Deviation(None, "1", "Both halves of a twin carry traffic [P]."),
    "env RAY_memory_monitor_refresh_ms": Deviation(None, "0", MEMORY_MONITOR),
}
#: On those whose source says nothing of the network.
NETWORK: dict[str, Deviation] = {
    "docker --device": Deviation(None, "/dev/infiniband", RDMA),
    "docker --cap-add": Deviation(None, "IPC_LOCK", RDMA),
    "docker --ulimit": Deviation(None, "memlock=-1:-1 nofile=1048576:1048576", f"{RDMA} {NOFILE}"),
    "env GLOO_SOCKET_IFNAME": Deviation(None, INTERFACE, AT_START),
    "env NCCL_SOCKET_IFNAME": Deviation(None, INTERFACE, AT_START),
    "env OMPI_MCA_btl_tcp_if_include": Deviation(None, INTERFACE, AT_START),
    "env NCCL_IB_HCA": Deviation(None, "=" + ",".join(HCAS), AT_START),
    "env UCX_NET_DEVICES": Deviation(None, ",".join([*(f"{hca}:1" for hca in HCAS), INTERFACE]), AT_START),
}
PROXY = (
    "Port 8000 is the proxy's, which checks the key on a list of paths; "
    "`edge_proxy: false` renders `0.0.0.0` and `8000`."
)
PUBLIC = {
    "serve --host": Deviation("0.0.0.0", "127.0.0.1", PROXY),
    "serve --port": Deviation("8000", "29602", PROXY),
}
FOUR = "enp1s0f0np0,enp1s0f1np1,enP2p1s0f0np0,enP2p1s0f1np1"

DEVIATIONS: dict[str, dict[str, Deviation]] = {
    "nemotron-ultra": {
        **COMMON,
        **RDMA_RAY,
        **NETWORK,
        **PUBLIC,
        "docker --detach": Deviation("true", None, SYSTEMD),
        "docker --name": Deviation("nemotron3-ultra-nvfp4-tp4", "vllm-nemotron-ultra", NAMED),
        "docker --ipc": Deviation(
            "host", None, "A node has one rank and /dev/shm its own 16g: there is nobody to share the host's with."
        ),
        "docker --volume": Deviation(
            "<spark-model-root>:/root/.cache/huggingface",
            VOLUMES_TETHERED,
            f"{READ_ONLY} {CACHE}",
        ),
        "image": Deviation("vllm-node:latest", "gb10/vllm-node:{fingerprint}", IMAGE),
        "process": Deviation("vllm serve", "gb10 entry ray-head, then vllm serve", ENTRY),
        "env RAY_ADDRESS": Deviation(None, "{head}:6379", "vLLM and `ray status` find this cluster and no other."),
        "env VLLM_API_KEY": Deviation(None, "********", "Set when the operator has a key; masked in what is rendered."),
    },
    "nemotron-super": {
        **COMMON,
        **RDMA_RAY,
        "docker --ulimit": Deviation("memlock=-1:-1", "memlock=-1:-1 nofile=1048576:1048576", NOFILE),
        "docker --name": Deviation("node-<number>", "vllm-nemotron-super", NAMED),
        "docker --runtime": Deviation(
            None, "nvidia", "How the container gets the GPU [S0, S4]; [S2] does not show it."
        ),
        "docker --shm-size": Deviation(
            None, "16g", "As in its launch scripts [P]; vLLM wants more than Docker's 64 MB [V]."
        ),
        "docker --volume": Deviation(
            "<Hugging Face cache>:/root/.cache/huggingface",
            VOLUMES_TETHERED,
            f"{READ_ONLY} {CACHE}",
        ),
        "image": Deviation("local/vllm-ray:26.05.post1", "gb10/vllm-ray:{fingerprint}", IMAGE),
        "process": Deviation(
            "ray start --block, and vllm serve by docker exec",
            "gb10 entry ray-head, then vllm serve",
            "A dead engine is a dead unit: with Ray as first process the container stays up without one [S0].",
        ),
        "model": Deviation(
            "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4",
            "/root/.cache/huggingface/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4",
            "The verified directory, not a name that the hub resolves [S0].",
        ),
        "env HF_TOKEN": Deviation("<secret>", None, OFFLINE),
        "env VLLM_API_KEY": Deviation("<secret>", "********", "The same variable; masked in what is rendered."),
        "env HF_HUB_OFFLINE": Deviation(None, "1", OFFLINE),
        "env TRANSFORMERS_OFFLINE": Deviation(None, "1", OFFLINE),
        "env RAY_ADDRESS": Deviation(None, "{head}:6379", "vLLM and `ray status` find this cluster and no other."),
        "env NCCL_SOCKET_IFNAME": Deviation(FOUR, INTERFACE, ONE_INTERFACE),
        "env GLOO_SOCKET_IFNAME": Deviation(FOUR, INTERFACE, ONE_INTERFACE),
        "env OMPI_MCA_btl_tcp_if_include": Deviation(FOUR, INTERFACE, ONE_INTERFACE),
        "env NCCL_IB_HCA": Deviation(",".join(HCAS), "=" + ",".join(HCAS), EXACT),
        "env UCX_NET_DEVICES": Deviation(
            ",".join(f"{hca}:1" for hca in HCAS),
            ",".join([*(f"{hca}:1" for hca in HCAS), INTERFACE]),
            "UCX may use the control interface as well.",
        ),
        "serve --served-model-name": Deviation(
            None, "nvidia/nemotron-3-super", "The name that the bench of [S2] asks for; its skeleton leaves it out."
        ),
        "serve --host": Deviation(None, "127.0.0.1", PROXY),
        "serve --port": Deviation(None, "29602", PROXY),
        "serve --distributed-executor-backend": Deviation(
            None, "ray", "vLLM would choose it with more ranks than GPUs; written down, so that nothing is chosen."
        ),
        "serve --quantization": Deviation(
            "fp4",
            None,
            "No release knows that word: vLLM takes the method from the checkpoint, and did so there [V 0.20.1].",
        ),
        "serve --max-model-len": Deviation(
            "256k", "262144", "vLLM reads 256k as 256000 [V]; the model's own length is 262144."
        ),
        "serve --reasoning-parser-plugin": Deviation(
            "/root/.cache/huggingface/super_v3_reasoning_parser.py",
            "/root/.cache/huggingface/nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4/super_v3_reasoning_parser.py",
            "The file travels with the weights and is verified with them, instead of being fetched at a start.",
        ),
    },
    "nemotron-nano": {
        **COMMON,
        **PUBLIC,
        **NETWORK,
        "docker --detach": Deviation("true", None, SYSTEMD),
        "docker --name": Deviation("nemotron-nvfp4", "vllm-nemotron-nano", NAMED),
        "docker --network": Deviation(
            None, "host", "As on several nodes: one way to reach every engine, and no proxy of Docker's."
        ),
        "docker --publish": Deviation("8000:8000", None, "The host's network needs none."),
        "docker --shm-size": Deviation(None, "16g", "As on several nodes [S0]; memory is taken when it is used."),
        "docker --volume": Deviation(
            "/path/to/hf-cache:/root/.cache/huggingface",
            VOLUMES,
            f"{READ_ONLY} {CACHE}",
        ),
        "image": Deviation("vllm-node:latest", "gb10/vllm-node:{fingerprint}", IMAGE),
        "process": Deviation(
            "python3 -m vllm.entrypoints.openai.api_server",
            "gb10 entry serve, then vllm serve",
            f"vllm serve is the same server under its newer name [V]. {ENTRY}",
        ),
        "model": Deviation(
            "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
            "/root/.cache/huggingface/nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
            "The verified directory, not a name that the hub resolves [S0].",
        ),
        "serve --served-model-name": Deviation(
            None,
            "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
            "The name that clients of [S4] see, although the model is a path.",
        ),
        "env HF_HUB_OFFLINE": Deviation(None, "1", OFFLINE),
        "env TRANSFORMERS_OFFLINE": Deviation(None, "1", OFFLINE),
        "env VLLM_API_KEY": Deviation(None, "********", "Set when the operator has a key; masked in what is rendered."),
    },
}

#: Options that stand elsewhere than in the source, and why.
MOVED = {"--distributed-executor-backend": "It follows from model_spec.engine and is added last."}

_SWITCHES = {"--rm", "--init", "--detach"}


def options(words: list[str], switches: set[str] | None = None) -> dict[str, Any]:
    """Return option -> value, a list when it is repeated; without ``switches`` what has no value is one."""
    found: dict[str, Any] = {}
    place = 0
    while place < len(words):
        word = words[place]
        assert word.startswith("--"), f"{word!r} is no option; before it: {words[:place]}"
        name, equals, value = word.partition("=")
        if not equals:
            bare = (
                word in switches
                if switches is not None
                else words[place + 1 : place + 2] in ([],) or words[place + 1].startswith("--")
            )
            if bare:
                found[name] = True
                place += 1
                continue
            place += 1
            value = words[place]
        found[name] = [*found[name], value] if name in found else [value]
        place += 1
    return {name: value if value is True or len(value) > 1 else value[0] for name, value in found.items()}


def text(value: Any) -> str:
    """Return a value for comparison: JSON without spaces, lists of names sorted."""
    if value is True:
        return "true"
    if isinstance(value, list):
        return " ".join(value)
    if str(value).startswith("{"):
        return json.dumps(json.loads(value), sort_keys=True)
    return str(value)


def flatten(command: Mapping[str, Any]) -> dict[str, str]:
    """Return a command as one dictionary, part -> value."""
    flat = {part: text(command[part]) for part in ("image", "process", "model")}
    for group in ("docker", "env", "serve"):
        flat.update({f"{group} {name}": text(value) for name, value in command[group].items()})
    return flat


def words_of(script: str) -> list[str]:
    """Return the words of the one command that a script runs, as a shell reads them."""
    return shlex.split(script.replace("\\\n", " ").rpartition("exec ")[2])


def command_of(folder: Path, model: str) -> dict[str, Any]:
    """Return the command that was rendered for a node, in the shape of published.yml."""
    words = words_of((folder / "docker-run.sh").read_text(encoding="utf-8"))
    assert words[:2] == ["/usr/bin/docker", "run"]
    image = next(place for place, word in enumerate(words) if word.startswith("gb10/"))
    entry = words[image + 1 :]
    assert entry[:2] == [build("engine").path, "entry"]
    dashes = entry.index("--")
    serve = entry[dashes + 1 :]
    assert serve[:2] == ["vllm", "serve"]
    launch = json.loads((folder / "etc" / "gb10" / "engine" / f"{model}.json").read_text(encoding="utf-8"))
    env_lines = (folder / "etc" / "gb10" / "engine" / f"{model}.env").read_text(encoding="utf-8").splitlines()
    env = dict(line.split("=", 1) for line in env_lines)
    machine = parse_capture(json.loads(MACHINE.read_text(encoding="utf-8")))
    env |= network_environment(machine, Record(), launch["address"], INTERFACE)
    return {
        "docker": options(words[2:image], _SWITCHES),
        "env": env,
        "image": words[image],
        "process": f"gb10 entry {entry[2]}, then vllm serve",
        "model": serve[2],
        "serve": options(serve[3:]),
        "launch": launch,
    }


def declared(model: str, command: Mapping[str, Any]) -> dict[str, Deviation]:
    """Return the declared deviations with what depends on the cluster filled in."""
    launch = command["launch"]
    filled = {
        "model": model,
        "repo": launch["weights"].removeprefix("/var/lib/gb10/weights/"),
        "address": launch["address"],
        "head": launch["head_address"],
        "python": command["docker"]["--entrypoint"],
        "fingerprint": command["image"].rpartition(":")[2],
        "program": build("engine").path,
    }
    return {
        part: each._replace(rendered=each.rendered and each.rendered.format(**filled))
        for part, each in DEVIATIONS[model].items()
    }


def differences(published: Mapping[str, str], found: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Return part -> (published, rendered) for every part that is not the same."""
    return {
        part: (published.get(part), found.get(part))
        for part in sorted({*published, *found})
        if published.get(part) != found.get(part)
    }


@pytest.mark.parametrize("model", MODELS)
def test_every_difference_is_declared_and_every_declared_one_is_there(
    model: str, rendered: Callable[[str], Any]
) -> None:
    command = command_of(rendered(model)[0] / "gx10-1", model)
    found = differences(flatten(PUBLISHED[model]), flatten(command))
    wanted = {part: (each.published, each.rendered) for part, each in declared(model, command).items()}
    undeclared = {part: pair for part, pair in found.items() if part not in wanted}
    gone = {part: pair for part, pair in wanted.items() if part not in found}
    other = {part: (found[part], wanted[part]) for part in found.keys() & wanted.keys() if found[part] != wanted[part]}
    assert not undeclared, f"rendered otherwise than published, and not declared: {undeclared}"
    assert not gone, f"declared, but there is no such difference any more: {gone}"
    assert not other, f"declared otherwise than it is (found, declared): {other}"


@pytest.mark.parametrize("model", MODELS)
def test_options_keep_the_published_order(model: str, rendered: Callable[[str], Any]) -> None:
    found = list(command_of(rendered(model)[0] / "gx10-1", model)["serve"])
    wanted = [name for name in PUBLISHED[model]["serve"] if name in found and name not in MOVED]
    assert [name for name in found if name in wanted] == wanted


@pytest.mark.parametrize("model", MODELS)
def test_workers_run_the_same_container(model: str, rendered: Callable[[str], Any]) -> None:
    where = rendered(model)[0]
    folders = sorted(path for path in where.iterdir() if path.is_dir())
    nodes = {"nemotron-ultra": 4, "nemotron-super": 2, "nemotron-nano": 1}[model]
    assert [folder.name for folder in folders] == [f"gx10-{number}" for number in range(1, nodes + 1)]
    images, envs = set(), set()
    for folder in folders:
        words = words_of((folder / "docker-run.sh").read_text(encoding="utf-8"))
        place = next(number for number, word in enumerate(words) if word.startswith("gb10/"))
        images.add(tuple(words[: place + 1]))
        envs.add((folder / "etc" / "gb10" / "engine" / f"{model}.env").read_text(encoding="utf-8"))
    assert len(images) == 1, "every rank's container must be the same"
    assert len(envs) == 1, "Ray carries no variable across nodes: every rank's file must be the same [S2]"


@pytest.mark.parametrize("model", MODELS)
def test_the_unit_runs_what_the_script_shows(model: str, rendered: Callable[[str], Any]) -> None:
    where = rendered(model)[0]
    for folder in sorted(path for path in where.iterdir() if path.is_dir()):
        unit = (folder / "etc" / "systemd" / "system" / f"vllm-{model}.service").read_text(encoding="utf-8")
        match = re.search(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.MULTILINE)
        assert match, unit
        script = (folder / "docker-run.sh").read_text(encoding="utf-8")
        assert words_of(match[1].replace("%%", "%").replace("$$", "$")) == words_of(script)


@pytest.mark.parametrize("model", MODELS)
def test_docs_list_the_same_deviations(model: str) -> None:
    document = (REPO / "docs" / "models.md").read_text(encoding="utf-8")
    for part, each in DEVIATIONS[model].items():
        row = table_row(part, each)
        assert row in document, f"missing in docs/models.md, for {model}:\n{row}"


def test_docs_list_no_other_deviation() -> None:
    document = (REPO / "docs" / "models.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(?:docker|env|serve|image|process|model)\b.*$", document, re.MULTILINE))
    known = {table_row(part, each) for model in DEVIATIONS.values() for part, each in model.items()}
    assert rows == known, f"in docs/models.md alone: {sorted(rows - known)}"


def table_row(part: str, each: Deviation) -> str:
    """Return a deviation as a row of docs/models.md."""
    shown = [f"`{value}`" if value is not None else "none" for value in (each.published, each.rendered)]
    return f"| `{part}` | {shown[0]} | {shown[1]} | {each.reason} |"


def test_a_difference_is_seen() -> None:
    same = {"serve --a": "1", "env B": "2"}
    assert differences(same, same) == {}
    assert differences(same, {**same, "serve --a": "2"}) == {"serve --a": ("1", "2")}
    assert differences(same, {"env B": "2"}) == {"serve --a": ("1", None)}
    assert differences(same, {**same, "serve --c": "true"}) == {"serve --c": (None, "true")}
    assert text('{"a": {"b": false}}') == text('{"a":{"b":false}}')
    assert options(["--a", "--b", "1", "--v=x", "--v", "y"]) == {"--a": True, "--b": "1", "--v": ["x", "y"]}
