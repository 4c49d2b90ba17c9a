# SPDX-License-Identifier: Apache-2.0
"""Mods: manifests, the choice of a patch, plans and labels, and the patches that ship."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gb10.cluster.plugins.filter import mods as filters
from ansible_collections.gb10.cluster.plugins.module_utils._memory.fit import GB10
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mod_files, mods
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import version as vllm_version

FIXTURES = Path(__file__).parents[2] / "fixtures" / "mods"
EXCERPTS = ["0.22.1", "0.27.1", "0.32.0", "0.33.0"]
PINNED = "0.22.1rc1.dev124+gace95c9cf.d20260603.cu132"
PATCH = """\
--- a/vllm/thing.py
+++ b/vllm/thing.py
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""


def manifest(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "thing",
        "summary": "Changes a thing.",
        "why": "It was wrong.",
        "versions": [
            {"vllm": "==0.22.*", "patch": "patches/a.patch"},
            {"vllm": f"=={PINNED}", "patch": "patches/b.patch"},
            {"vllm": ">=0.27", "patch": None},
        ],
        "adds": {"options": [{"name": "thing", "type": "int", "minimum": 1, "excludes": ["other"]}], "env": ["VLLM_T"]},
        "probe": {"python": "import vllm.thing"},
    }
    return {**found, **changes}


FILES = {"patches/a.patch": PATCH, "patches/b.patch": PATCH.replace("+2", "+II")}


def parsed(**changes: Any) -> mods.Mod:
    mod, errors = mods.parse_manifest(manifest(**changes), str(changes.get("name", "thing")), FILES)
    assert mod is not None, errors
    return mod


def test_manifest_is_read_whole() -> None:
    mod = parsed()
    assert (mod.name, mod.summary, mod.probe) == ("thing", "Changes a thing.", "import vllm.thing")
    assert mod.options == (mods.ModOption("thing", "int", minimum=1, excludes=("other",)),)
    assert mod.env == ("VLLM_T",)
    assert [entry.patch for entry in mod.versions] == ["patches/a.patch", "patches/b.patch", ""]
    assert mods.providers_of({"thing": mod}) == {"thing": ["thing"], "VLLM_T": ["thing"]}
    assert mods.options_of({"thing": mod}, ["thing", "unknown"]) == list(mod.options)


@pytest.mark.parametrize(
    ("version", "patch"),
    [("0.22.0", "patches/a.patch"), (PINNED, "patches/b.patch"), ("0.33.0", "")],
)
def test_the_exact_text_comes_before_a_range(version: str, patch: str) -> None:
    assert mods.choose(parsed(), vllm_version.parse(version)).patch == patch


def test_plan() -> None:
    plan = mods.mods_plan({"thing": parsed()}, ["thing"], "0.22.3")
    assert plan[0]["patch_path"] == "thing/patches/a.patch"
    assert plan[0]["files"] == ["vllm/thing.py"]
    assert plan[0]["adds"]["options"] == ["thing"]
    assert mods.mods_plan({"thing": parsed()}, ["thing"], "0.33.0")[0]["patch_path"] == ""
    assert mods.mods_plan({}, [], "0.22.1") == []


def test_the_hash_follows_the_effect_and_nothing_else() -> None:
    def digest(version: str = "0.22.3", **changes: Any) -> str:
        name = str(changes.get("name", "thing"))
        return str(mods.mods_plan({name: parsed(**changes)}, [name], version)[0]["sha256"])

    assert digest() == digest(why="Another reason.") == digest("0.22.9")
    assert digest() == digest(versions=[{"vllm": ">=0.22", "patch": "patches/a.patch"}])
    different = [digest(), digest(PINNED), digest("0.33.0"), digest(probe={"python": "pass"}), digest(name="other")]
    assert len(set(different)) == len(different)


def test_order_counts_in_the_label() -> None:
    known = {name: parsed(name=name, adds={}) for name in ("one", "two")}
    plan = mods.mods_plan(known, ["one", "two"], "0.22.1")
    back = mods.mods_plan(known, ["two", "one"], "0.22.1")
    assert mods.plan_digest(plan) != mods.plan_digest(back)
    labels = mods.plan_labels(plan)
    assert labels["gb10.mods"] == f"one@{plan[0]['sha256'][:12]},two@{plan[1]['sha256'][:12]}"
    assert labels["gb10.mods.sha256"] == mods.plan_digest(plan)
    assert mods.plan_labels([])["gb10.mods"] == ""


def test_document_holds_what_the_image_build_needs() -> None:
    plan = mods.mods_plan({"thing": parsed()}, ["thing"], "0.22.3")
    document = json.loads(mods.plan_document(plan, "0.22.3"))
    assert document["vllm_version"] == "0.22.3"
    assert document["digest"] == mods.plan_digest(plan)
    assert set(document["mods"][0]) == {"name", "vllm", "patch_path", "files", "sha256", "probe"}


@pytest.mark.parametrize(
    ("text", "files"),
    [
        (PATCH, ["vllm/thing.py"]),
        ("--- /dev/null\n+++ b/vllm/new.py\n@@ -0,0 +1 @@\n+x\n", ["vllm/new.py"]),
        ("--- a/vllm/old.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n", ["vllm/old.py"]),
        ("--- a/vllm/x.py\t2026-01-01\n+++ b/vllm/x.py\t2026-01-02\n@@ -1 +1 @@\n-x\n+y\n", ["vllm/x.py"]),
        # A removed line that itself begins with dashes is no header.
        ("--- a/vllm/x.py\n+++ b/vllm/x.py\n@@ -1,2 +1 @@\n--- a/y\n x\n", ["vllm/x.py"]),
    ],
)
def test_touched_files(text: str, files: list[str]) -> None:
    assert mods.touched_files(text) == files
    assert mods.patch_errors(text) == []


# --- reading from disk ------------------------------------------------------------------------


def test_shipped_mods_are_sound() -> None:
    known = mod_files.load_mods()
    assert {"gpu-mem-util-gb", "nemotron-ultra"} <= set(known)
    for version in (*EXCERPTS, PINNED, "0.32.0+cpu"):
        plan = mods.mods_plan(known, ["gpu-mem-util-gb", "nemotron-ultra"], version)
        release = vllm_version.parse(version).base
        assert plan[0]["patch_path"] == f"gpu-mem-util-gb/patches/{release}.patch"
        assert plan[1]["patch_path"] == ""


def test_a_directory_of_ones_own_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "nemotron-ultra"
    folder.mkdir()
    text = (mod_files.OWN_MODS / "nemotron-ultra" / "manifest.yml").read_text(encoding="utf-8")
    (folder / "manifest.yml").write_text(text.replace("Checks that", "Mine -"), encoding="utf-8")
    assert mod_files.load_mods([str(tmp_path)])["nemotron-ultra"].summary.startswith("Mine -")
    assert mod_files.mod_directory("nemotron-ultra", [str(tmp_path)]) == folder
    assert set(mod_files.load_mods([str(tmp_path)], ["nemotron-ultra"])) == {"nemotron-ultra"}


def test_yaml_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.yml").write_text("a: [", encoding="utf-8")
    with pytest.raises(mods.ModsError, match=r"mods/x/manifest\.yml is no YAML: "):
        mod_files.load_mods([str(tmp_path)])


def test_filter_gives_the_source_of_each_patch() -> None:
    plan = filters.mods_plan(["gpu-mem-util-gb", "nemotron-ultra"], "0.22.1")
    assert Path(plan[0]["src"]).is_file()
    assert plan[1]["src"] == ""
    labels = filters.mods_labels(plan)
    assert labels["gb10.mods"].startswith("gpu-mem-util-gb@")
    assert filters.mods_plan([], "0.22.1", str(mod_files.OWN_MODS)) == []


def test_filter_fails_with_every_sentence() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        filters.mods_plan(["nope", "gpu-mem-util-gb"], "0.1.0")
    assert "Mod 'nope' is not known." in str(caught.value)
    assert "Mod 'gpu-mem-util-gb' has no patch for vLLM 0.1.0" in str(caught.value)


# --- the budget patch on vLLM's own lines -----------------------------------------------------


def patched(version: str, folder: Path) -> Path:
    """Return a tree with the excerpts of this version after the patch."""
    source = FIXTURES / f"vllm-{version}"
    for path in source.rglob("*.txt"):
        target = folder / path.relative_to(source).with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    patch = mod_files.OWN_MODS / "gpu-mem-util-gb" / "patches" / f"{version}.patch"
    env = {"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        ["git", "apply", "-p1", str(patch)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def request_memory(tree: Path) -> Any:
    """Return the patched function, compiled from the excerpt alone."""
    text = (tree / "vllm/v1/worker/utils.py").read_text(encoding="utf-8")
    last = "    return requested_memory\n"
    code = text[text.index("def apply_gib_budget(") : text.index(last) + len(last)]
    names: dict[str, Any] = {
        "math": math,
        "os": SimpleNamespace(uname=lambda: SimpleNamespace(nodename="gx10-3")),
        "CacheConfig": object,
        "MemorySnapshot": object,
        "format_gib": lambda size: f"{size / 2**30:.2f}",
        "logger": SimpleNamespace(info_once=lambda *_unused: None),
    }
    exec(code, names)
    return names["request_memory"]


def node(free_gib: float, total_gib: float = 121.69) -> SimpleNamespace:
    return SimpleNamespace(free_memory=int(free_gib * 2**30), total_memory=int(total_gib * 2**30), device_="cuda:0")


def cache(budget_gib: float | None, fraction: float = 0.92) -> SimpleNamespace:
    return SimpleNamespace(gpu_memory_utilization_gb=budget_gib, gpu_memory_utilization=fraction)


@pytest.mark.parametrize("version", EXCERPTS)
def test_budget_is_requested_as_it_is(version: str, tmp_path: Path) -> None:
    request = request_memory(patched(version, tmp_path))
    config = cache(108)
    assert request(node(111.27), config) == pytest.approx(108 * 2**30, abs=4096)
    # What the engine logs and derives afterwards is the same budget as a fraction.
    assert config.gpu_memory_utilization == pytest.approx(108 / 121.69, abs=1e-6)
    # 110.52 GiB and the margin are more than 111.27; 110 is the firm cap of [S0].
    assert request(node(111.27), cache(110)) == pytest.approx(110 * 2**30, abs=4096)
    assert request(node(111.27), cache(None, 0.5)) == pytest.approx(0.5 * 121.69 * 2**30, abs=4096)


@pytest.mark.parametrize("version", EXCERPTS)
def test_budget_above_what_is_free_is_refused_with_the_figures(version: str, tmp_path: Path) -> None:
    request = request_memory(patched(version, tmp_path))
    with pytest.raises(ValueError, match="gpu-memory-utilization-gb") as caught:
        request(node(111.27), cache(111))
    assert str(caught.value) == (
        "--gpu-memory-utilization-gb 111 does not fit cuda:0 of gx10-3: it wants 111 GiB and a margin of 0.75 GiB "
        "free, and of 121.69 GiB in all 111.27 GiB are free now, 0.48 GiB too few. Lower it to 110 or less on every "
        "node, or stop what holds the memory."
    )
    with pytest.raises(ValueError, match="less than desired GPU memory utilization"):
        request(node(100), cache(None, 0.92))


@pytest.mark.parametrize("version", EXCERPTS)
def test_the_margin_covers_what_was_seen_outside_a_budget(version: str, tmp_path: Path) -> None:
    request = request_memory(patched(version, tmp_path))
    with pytest.raises(ValueError, match="does not fit"):
        request(node(100 + GB10.least_outside_budget_gib), cache(100))


@pytest.mark.parametrize("version", EXCERPTS)
def test_patch_brings_option_field_and_exclusion(version: str, tmp_path: Path) -> None:
    tree = patched(version, tmp_path)
    arguments = (tree / "vllm/engine/arg_utils.py").read_text(encoding="utf-8")
    assert '"--gpu-memory-utilization-gb", **cache_kwargs["gpu_memory_utilization_gb"]' in arguments
    assert "utilization_group = cache_group.add_mutually_exclusive_group()" in arguments
    assert "gpu_memory_utilization_gb=self.gpu_memory_utilization_gb," in arguments
    config = (tree / "vllm/config/cache.py").read_text(encoding="utf-8")
    assert "gpu_memory_utilization_gb: float | None = Field(default=None, gt=0)" in config
    assert '            "gpu_memory_utilization_gb",' in config
    assert "apply_gib_budget(" in (tree / "vllm/v1/worker/cpu_worker.py").read_text(encoding="utf-8")
