# SPDX-License-Identifier: Apache-2.0
"""gb10.cluster.docker_keep against a Docker that holds images and containers."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gb10.cluster.plugins.modules import docker_keep

from .conftest import Run


class Docker:
    """Images by reference, and the containers that keep them."""

    def __init__(self) -> None:
        self.images = {"vllm:1": "sha256:a", "vllm:2": "sha256:b"}
        self.containers: dict[str, str] = {}

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Answer one call of the client."""
        words = command[1:]
        if words[:2] == ["image", "inspect"]:
            found = self.images.get(words[-1])
            return (0, f"{found}\n", "") if found else (1, "", "No such image")
        if words[:2] == ["container", "ls"]:
            return 0, "\n".join(self.containers), ""
        if words[:2] == ["container", "inspect"]:
            return 0, json.dumps([{"Name": f"/{name}", "Image": self.containers[name]} for name in words[2:]]), ""
        if words[:2] == ["container", "rm"]:
            for name in words[2:]:
                del self.containers[name]
        elif words[:2] == ["container", "create"]:
            self.containers[words[words.index("--name") + 1]] = self.images[words[-1]]
        return 0, "", ""


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Docker:
    """Stand a Docker in for this machine's."""
    made = Docker()
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command, **_rest: made.run(command))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, **_rest: f"/usr/bin/{name}")
    return made


def test_an_image_is_kept_once(docker: Docker, run_module: Run) -> None:
    result = run_module(docker_keep, images=["vllm:1"])
    assert (result["changed"], result["kept"]) == (True, {"vllm:1": "sha256:a"})
    assert list(docker.containers.values()) == ["sha256:a"]
    assert run_module(docker_keep, images=["vllm:1"])["changed"] is False


def test_a_new_build_under_the_same_name_lets_the_old_one_go(docker: Docker, run_module: Run) -> None:
    run_module(docker_keep, images=["vllm:1"])
    docker.images["vllm:1"] = "sha256:c"
    assert run_module(docker_keep, images=["vllm:1"])["changed"] is True
    assert list(docker.containers.values()) == ["sha256:c"]


def test_exclusive_lets_the_others_go(docker: Docker, run_module: Run) -> None:
    run_module(docker_keep, images=["vllm:1"])
    run_module(docker_keep, images=["vllm:2"])
    assert len(docker.containers) == 2
    run_module(docker_keep, images=["vllm:2"], exclusive=True)
    assert list(docker.containers.values()) == ["sha256:b"]


def test_an_image_that_is_missing_is_named(docker: Docker, run_module: Run) -> None:
    assert "The image vllm:9 does not exist on this node" in run_module(docker_keep, images=["vllm:9"])["msg"]
    assert run_module(docker_keep, check=True, images=["vllm:9"])["changed"] is True
    assert docker.containers == {}


def test_check_mode_creates_nothing(docker: Docker, run_module: Run) -> None:
    assert run_module(docker_keep, check=True, images=["vllm:1"])["changed"] is True
    assert docker.containers == {}
