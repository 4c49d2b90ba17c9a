# SPDX-License-Identifier: Apache-2.0
"""What image_build, image_room and docker_keep run on a node, and what they say when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.modules import (
    docker_keep,
    image_build,
    image_check,
    image_room,
)
from tests.unit.helper import Answer, EndedError
from tests.unit.helper import NodeModule as Module
from tests.unit.helper import ended as run

TAG = "gb10/probe:0123456789ab"


# --- image_build -----------------------------------------------------------------------------------------------


def build_params(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "tag": TAG,
        "fingerprint": "f" * 64,
        "context_dir": str(tmp_path / "context"),
        "base": "gb10/base:1",
        "base_archive": None,
        "base_name": None,
        "network": "none",
        "log": str(tmp_path / "log" / "build.log"),
        **more,
    }


def inspected(fingerprint: str | None) -> Answer:
    """Answer as a Docker Engine with the image and its label, or without both images."""

    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        if argv[1:3] != ["image", "inspect"]:
            return None
        if fingerprint is None:
            return 1, "", "No such image"
        return 0, json.dumps([{"Config": {"Labels": {"gb10.fingerprint": fingerprint}}}]), ""

    return answer


def commands(fake: Module) -> list[list[str]]:
    """Return the commands that were run with their output in the log."""
    return [call[5:] for call in fake.calls if call[0] == "/bin/sh"]


def test_an_image_of_the_same_fingerprint_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Module(build_params(tmp_path), inspected("f" * 64))
    assert run(image_build, monkeypatch, fake).result == {"changed": False}
    assert commands(fake) == []


def test_an_image_of_another_fingerprint_is_built_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Module(build_params(tmp_path), inspected("e" * 64))
    ended = run(image_build, monkeypatch, fake)
    assert (ended.failed, ended.result["changed"]) == (False, True)
    context = str(tmp_path / "context")
    assert commands(fake) == [["docker", "build", "--network", "none", "--tag", TAG, context]]
    assert fake.run_command_environ_update["BUILDKIT_PROGRESS"] == "plain"
    assert (tmp_path / "log" / "build.log").read_text(encoding="utf-8") == ""


def test_a_missing_base_is_imported_from_its_archive_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Module(build_params(tmp_path, base_archive="/base.tar"), inspected(None))
    assert not run(image_build, monkeypatch, fake).failed
    assert [call[1] for call in commands(fake)] == ["import", "build"]
    assert commands(fake)[0] == ["docker", "import", "/base.tar", "gb10/base:1"]


def test_a_base_under_another_name_is_built_from_and_not_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("# FROM gb10/base:1\nFROM gb10/base:1\nRUN x\n", encoding="utf-8")
    fake = Module(build_params(tmp_path, base_name="gb10/base:0123456789ab"), inspected(None))
    assert not run(image_build, monkeypatch, fake).failed
    (build,) = commands(fake)
    assert build[-3:] == ["--file", str(context / "Dockerfile.local"), str(context)]
    text = (context / "Dockerfile.local").read_text(encoding="utf-8")
    assert text == "# FROM gb10/base:1\nFROM gb10/base:0123456789ab\nRUN x\n"


#: Captured from a build with Docker 20.10 and BuildKit whose base had been imported in the command before.
ASKED_REGISTRY = (
    "failed to solve with frontend dockerfile.v0: failed to create LLB definition: failed to do request: Head "
    '"https://registry-1.docker.io/v2/gb10/base/manifests/1": dial tcp: lookup registry-1.docker.io on [::1]:53: '
    "dial udp [::1]:53: connect: cannot assign requested address"
)


@pytest.mark.parametrize(("base_is_there", "builds"), [(True, 2), (False, 1)])
def test_a_builder_that_overlooks_the_base_is_asked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_is_there: bool, builds: int
) -> None:
    log = tmp_path / "log" / "build.log"
    tried: list[list[str]] = []

    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        if argv[1:3] == ["image", "inspect"]:
            return (0 if base_is_there and argv[3] == "gb10/base:1" else 1), "[]", ""
        if "build" in argv:
            tried.append(argv)
            if len(tried) == 1:
                log.write_text(ASKED_REGISTRY + "\n", encoding="utf-8")
                return 1, "", ""
        return None

    ended = run(image_build, monkeypatch, Module(build_params(tmp_path), answer))
    assert (len(tried), ended.failed) == (builds, not base_is_there)


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("import", "/base.tar cannot be imported as a base image: line 41"),
        ("build", f"The build of {TAG} failed (exit code 7); its complete output is in"),
    ],
)
def test_a_failed_build_ends_with_the_last_lines_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, sentence: str
) -> None:
    log = tmp_path / "log" / "build.log"

    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        if argv[0] == "/bin/sh" and argv[6] == verb:
            log.write_text("".join(f"line {n}\n" for n in range(1, 101)), encoding="utf-8")
            return 7, "", ""
        return inspected(None)(argv)

    ended = run(image_build, monkeypatch, Module(build_params(tmp_path, base_archive="/base.tar"), answer))
    assert ended.failed
    assert str(ended).startswith(sentence)
    assert str(ended).endswith("line 100")
    assert "line 40\n" not in str(ended)


@pytest.mark.parametrize("installed", [True, False])
def test_check_mode_reports_a_build_that_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    fake = Module(build_params(tmp_path), inspected(None), check=True)
    fake.missing = set() if installed else {"docker"}
    assert run(image_build, monkeypatch, fake).result["changed"] is True
    assert commands(fake) == []
    assert not (tmp_path / "log").exists()


def test_a_node_without_docker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Module(build_params(tmp_path))
    fake.missing = {"docker"}
    assert "Docker is not installed on this node" in str(run(image_build, monkeypatch, fake))


# --- image_check -----------------------------------------------------------------------------------------------


IMAGE = {"Architecture": "arm64", "RootFS": {"Layers": ["sha256:a"]}, "Config": {}}


def check_params(tmp_path: Path) -> dict[str, Any]:
    return {
        "tag": TAG,
        "python": "/opt/vllm/bin/python",
        "assertions": {"torch": "2.11.0+cu130", "torch_cuda": "13.0"},
        "imports": ["torch"],
        "probes": {"small": "assert True"},
        "nccl_floor": "",
        "nccl_below_floor": "refuse",
        "state_dir": str(tmp_path),
    }


def inside(found: dict[str, str], probe: int = 0) -> Answer:
    """Answer as an image in which these versions are found and the mod's probe ends with an exit code."""

    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        if argv[1:3] == ["image", "inspect"]:
            return 0, json.dumps([IMAGE]), ""
        if argv[1] == "run" and "gb10-image-probe" in argv[argv.index("-c") + 1]:
            return 0, "noise\ngb10-image-probe " + json.dumps({"found": found, "errors": {}}) + "\n", ""
        if argv[1] == "run":
            return probe, "", "AssertionError" if probe else ""
        return None

    return answer


GOOD = {"torch": "2.11.0+cu130", "torch_cuda": "13.0"}


def test_a_verified_image_is_recorded_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(image_check, monkeypatch, Module(check_params(tmp_path), inside(GOOD)))
    assert (ended.result["changed"], ended.result["versions"]) == (True, GOOD)
    again = Module(check_params(tmp_path), inside({}))
    assert run(image_check, monkeypatch, again).result["changed"] is False
    assert [call for call in again.calls if call[1] == "run"] == []
    # Another assertion has to be checked, whatever is recorded.
    params = {**check_params(tmp_path), "assertions": {"torch": "2.12.0"}}
    assert run(image_check, monkeypatch, Module(params, inside(GOOD))).failed


@pytest.mark.parametrize(
    ("found", "probe", "sentence"),
    [
        ({**GOOD, "torch": "2.11.0+cpu"}, 0, "torch is 2.11.0+cpu, asserted is 2.11.0+cu130. This is the CPU build"),
        ({**GOOD, "torch_cuda": "13.2"}, 0, "torch is built for CUDA 13.2, asserted is 13.0"),
        (GOOD, 1, "the probe of mod 'small' fails: AssertionError"),
    ],
)
def test_a_wrong_image_is_refused_and_loses_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, str], probe: int, sentence: str
) -> None:
    fake = Module(check_params(tmp_path), inside(found, probe))
    ended = run(image_check, monkeypatch, fake)
    assert ended.failed
    assert sentence in str(ended)
    assert ["docker", "rmi", TAG] in fake.calls
    assert not (tmp_path / "images").exists()


def test_an_old_nccl_is_refused_for_several_nodes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**GOOD, "nccl": "2.28.9"}
    alone = Module(check_params(tmp_path), inside(found))
    assert not run(image_check, monkeypatch, alone).failed
    # The record of the model of one node does not let the image pass for one of several.
    params = {**check_params(tmp_path), "nccl_floor": "2.29.3"}
    ended = run(image_check, monkeypatch, Module(params, inside(found)))
    assert ended.failed
    assert "torch loads NCCL 2.28.9; below 2.29.3 it deadlocks on aarch64 between nodes" in str(ended)
    # The owner may want it so; each run says it again.
    for changed in (True, False):
        fake = Module({**params, "nccl_below_floor": "warn"}, inside(found))
        if changed:
            (tmp_path / "images" / "gb10_probe@0123456789ab.json").unlink()
        assert run(image_check, monkeypatch, fake).result["changed"] is changed
        assert len(fake.warnings) == 1


def test_a_record_that_does_not_know_its_nccl_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run(image_check, monkeypatch, Module(check_params(tmp_path), inside(GOOD))).failed
    fake = Module({**check_params(tmp_path), "nccl_floor": "2.29.3"}, inside({**GOOD, "nccl": "2.29.3"}))
    assert run(image_check, monkeypatch, fake).result["versions"]["nccl"] == "2.29.3"


# --- image_room ------------------------------------------------------------------------------------------------


def room_params(tmp_path: Path, **more: Any) -> dict[str, Any]:
    layers = [{"diff_id": f"sha256:{n}", "bytes": 400 * 2**20, "file_bytes": 100 * 2**20} for n in range(2)]
    return {
        "tag": TAG,
        "node": "gx10-3",
        "layers": layers,
        "copied_mib": 0.0,
        "state_dir": str(tmp_path),
        "reserve_gib": 0.0,
        **more,
    }


def engine_at(root: Path) -> Answer:
    """Answer as a Docker Engine that keeps its images there and has the first layer."""

    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        if argv[1] == "info":
            return 0, f"{root}\nnull\n", ""
        if argv[1:3] == ["image", "ls"]:
            return 0, "sha256:1\n", ""
        if argv[1:3] == ["image", "inspect"]:
            return 0, json.dumps([{"RootFS": {"Layers": ["sha256:0"]}}]), ""
        return None

    return answer


def test_an_image_that_fits_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(image_room, monkeypatch, Module(room_params(tmp_path), engine_at(tmp_path)))
    assert ended.result == {"changed": False, "missing": ["sha256:1"], "missing_mib": 100.0}


def test_an_image_that_does_not_fit_is_refused_with_the_shortfall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Module(room_params(tmp_path, reserve_gib=1e6), engine_at(tmp_path))
    ended = run(image_room, monkeypatch, fake)
    assert ended.failed
    # The layer as it arrives, and unpacked.
    assert str(ended).startswith(f"gx10-3: {TAG} needs 500.0 MiB below {tmp_path} while it arrives")
    # Archives that are copied first are on the same disk.
    ended = run(
        image_room, monkeypatch, Module(room_params(tmp_path, reserve_gib=1e6, copied_mib=100.0), engine_at(tmp_path))
    )
    assert str(ended).startswith(f"gx10-3: {TAG} needs 600.0 MiB below {tmp_path} while it arrives")


def test_an_engine_that_does_not_answer_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(image_room, monkeypatch, Module(room_params(tmp_path), lambda _argv: (1, "", "no daemon")))
    assert str(ended) == "gx10-3: the Docker Engine does not answer: no daemon"


def test_check_mode_passes_on_a_node_that_has_no_docker_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Module(room_params(tmp_path), check=True)
    fake.missing = {"docker"}
    assert run(image_room, monkeypatch, fake).result["missing"] == []


# --- docker_keep -----------------------------------------------------------------------------------------------


def keeping(images: dict[str, str], keepers: dict[str, str]) -> Answer:
    """Answer as a Docker Engine with images (name → id) and containers that keep one (name → id)."""

    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        if argv[1:3] == ["image", "inspect"]:
            found = images.get(argv[-1])
            return (0, f"{found}\n", "") if found else (1, "", "No such image")
        if argv[1:3] == ["container", "ls"]:
            return 0, "".join(f"{name}\n" for name in keepers), ""
        if argv[1:3] == ["container", "inspect"]:
            return 0, json.dumps([{"Name": f"/{name}", "Image": keepers[name]} for name in argv[3:]]), ""
        return None

    return answer


def changes(fake: Module) -> list[list[str]]:
    return [call[2:] for call in fake.calls if call[1:3] in (["container", "create"], ["container", "rm"])]


def keep(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, images: list[str], exclusive: bool = False, check: bool = False
) -> tuple[EndedError, list[list[str]]]:
    fake = Module({"images": images, "exclusive": exclusive}, answer, check)
    ended = run(docker_keep, monkeypatch, fake)
    return ended, changes(fake)


def test_an_image_is_kept_by_a_container_that_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, made = keep(monkeypatch, keeping({"gb10/a:1": "sha256:1"}, {}), ["gb10/a:1"])
    assert (ended.result["changed"], ended.result["kept"]) == (True, {"gb10/a:1": "sha256:1"})
    (words,) = made
    assert words[:5] == ["create", "--name", "gb10-keep-gb10-a-1", "--label", "gb10.keep=true"]
    assert words[-1] == "gb10/a:1"


def test_a_kept_image_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = keeping({"gb10/a:1": "sha256:1"}, {"gb10-keep-gb10-a-1": "sha256:1", "gb10-keep-other": "sha256:9"})
    ended, made = keep(monkeypatch, answer, ["gb10/a:1"])
    assert (ended.result["changed"], made) == (False, [])


def test_a_keeper_of_an_earlier_build_is_replaced_and_others_go_when_exclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = keeping({"gb10/a:1": "sha256:2"}, {"gb10-keep-gb10-a-1": "sha256:1", "gb10-keep-other": "sha256:9"})
    ended, made = keep(monkeypatch, answer, ["gb10/a:1"], exclusive=True)
    assert made[0] == ["rm", "gb10-keep-gb10-a-1", "gb10-keep-other"]
    assert made[1][0] == "create"
    assert ended.result["diff"]["after"] == "gb10-keep-gb10-a-1 sha256:2\n"
    checked, made = keep(monkeypatch, answer, ["gb10/a:1"], exclusive=True, check=True)
    assert (checked.result["diff"], made) == (ended.result["diff"], [])


def test_an_image_that_does_not_exist_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, _made = keep(monkeypatch, keeping({}, {}), ["gb10/a:1"])
    assert ended.failed
    assert "The image gb10/a:1 does not exist on this node" in str(ended)
    checked, _made = keep(monkeypatch, keeping({}, {}), ["gb10/a:1"], check=True)
    assert (checked.failed, checked.result["changed"]) == (False, True)


def test_a_failing_docker_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(argv: list[str]) -> tuple[int, str, str] | None:
        if argv[1:3] == ["container", "create"]:
            return 125, "", "no space left"
        return keeping({"a": "sha256:1"}, {})(argv)

    ended, _made = keep(monkeypatch, answer, ["a"])
    assert str(ended) == "docker container create failed: no space left"
