# SPDX-License-Identifier: Apache-2.0
"""apply_mods.py on small trees, with the real git and patch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods

SCRIPT = Path(__file__).parents[3] / "roles" / "image" / "files" / "apply_mods.py"
# Twelve numbered lines, of which a patch changes the sixth.
LINES = [f"line_{number} = {number}" for number in range(1, 13)]
SOURCE = "\n".join(LINES) + "\n"


def patch(name: str, old: str, new: str, start: int = 3, end: int = 9) -> str:
    """Return a diff of one line among lines start..end of LINES."""
    shown = LINES[start - 1 : end]
    body = "".join(f"-{old}\n+{new}\n" if line == old else f" {line}\n" for line in shown)
    return f"--- a/vllm/{name}\n+++ b/vllm/{name}\n@@ -{start},{len(shown)} +{start},{len(shown)} @@\n{body}"


SIX = patch("a.py", "line_6 = 6", "line_6 = 'six'")
PROBE = "import vllm.a; assert vllm.a.line_6 == 'six', 'line_6 is still ' + repr(vllm.a.line_6)"


@dataclass
class Tree:
    """A site-packages with a small vllm, a build context with mods, and what running gave."""

    folder: Path
    files: dict[str, str] = field(default_factory=lambda: {"a.py": SOURCE, "b.py": SOURCE})
    version: str = "0.22.1"

    def __post_init__(self) -> None:
        self.site = self.folder / "site"
        self.context = self.folder / "mods"
        self.record = self.folder / "etc" / "mods.json"
        for name, text in {"__init__.py": "", **self.files}.items():
            path = self.site / "vllm" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        info = self.site / f"vllm-{self.version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: vllm\nVersion: {self.version}\n", encoding="utf-8")

    def plan(self, *entries: tuple[str, str, str], version: str = "0.22.1") -> None:
        """Write plan.json and the patches, as the control node does, for (name, patch, probe)."""
        known: dict[str, mods.Mod] = {}
        for name, text, probe in entries:
            file = "p.patch" if text else None
            manifest = {
                "name": name,
                "summary": "s",
                "why": "w",
                "versions": [{"vllm": ">=0.0", "patch": file}],
                "probe": {"python": probe},
            }
            mod, errors = mods.parse_manifest(manifest, name, {"p.patch": text})
            assert mod is not None, errors
            known[name] = mod
            (self.context / name).mkdir(parents=True, exist_ok=True)
            if text:
                (self.context / name / "p.patch").write_bytes(text.encode())
        plan = mods.mods_plan(known, [name for name, _patch, _probe in entries], version)
        self.context.mkdir(exist_ok=True)
        (self.context / "plan.json").write_text(mods.plan_document(plan, version), encoding="utf-8")

    def run(self, *names: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the script as the image build does: isolated, without site-packages of its own."""
        command = [sys.executable, "-I", "-S", str(SCRIPT), "--mods-dir", str(self.context), *names]
        command += ["--site-packages", str(self.site), "--record", str(self.record)]
        env = {**os.environ, "PATH": os.environ["PATH"] if path is None else path}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    def bytes_(self) -> dict[str, bytes]:
        """Return every file of the package, whatever its name."""
        return {str(each.relative_to(self.site)): each.read_bytes() for each in self.site.rglob("*") if each.is_file()}

    def recorded(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return found


def tools(folder: Path, *names: str) -> str:
    """Return a PATH on which only these programs are found."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, f"{name} is needed to run these tests"
        (folder / name).symlink_to(found)
    return str(folder)


def test_applies_probes_and_records(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.plan(("thing", SIX, PROBE))
    done = tree.run("thing")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "mods: thing applied with git apply, 1 files, probe passed\n"
    assert (tree.site / "vllm" / "a.py").read_text(encoding="utf-8") == SOURCE.replace("= 6", "= 'six'")
    record = tree.recorded()
    plan = json.loads((tree.context / "plan.json").read_text(encoding="utf-8"))
    assert record["digest"] == plan["digest"]
    assert record["mods"][0]["sha256"] == plan["mods"][0]["sha256"]
    assert record["mods"][0]["files"] == ["vllm/a.py"]
    assert tree.record.stat().st_mode & 0o777 == 0o644
    assert list(tree.record.parent.iterdir()) == [tree.record]


@pytest.mark.parametrize("keep_record", [True, False])
def test_a_second_run_changes_nothing(tmp_path: Path, keep_record: bool) -> None:
    tree = Tree(tmp_path)
    tree.plan(("thing", SIX, PROBE))
    assert tree.run().returncode == 0
    before = tree.bytes_()
    if not keep_record:
        tree.record.unlink()
    done = tree.run()
    assert done.stdout == "mods: thing already applied, 1 files, probe passed\n"
    assert tree.bytes_() == before


def test_lines_that_moved_are_found(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"a.py": "extra = 0\n" * 30 + SOURCE})
    tree.plan(("thing", SIX, PROBE))
    assert "applied with git apply" in tree.run().stdout


def test_fuzz_takes_what_git_refuses(tmp_path: Path) -> None:
    """A changed line of context: git apply wants it as it was, patch --fuzz=5 does not."""
    tree = Tree(tmp_path, {"a.py": SOURCE.replace("line_4 = 4", "line_4 = 40")})
    tree.plan(("thing", SIX, PROBE))
    done = tree.run()
    assert done.stdout == "mods: thing applied with patch --fuzz=5, 1 files, probe passed\n"
    text = (tree.site / "vllm" / "a.py").read_text(encoding="utf-8")
    assert "line_4 = 40" in text
    assert "line_6 = 'six'" in text
    assert tree.recorded()["mods"][0]["method"] == "applied with patch --fuzz=5"
    assert set(tree.bytes_()) == {"vllm/__init__.py", "vllm/a.py", "vllm-0.22.1.dist-info/METADATA"}
    assert "already applied" in tree.run().stdout


def test_both_refuse_in_one_message_and_nothing_is_left_behind(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"a.py": SOURCE.replace("line_6 = 6", "line_6 = 66")})
    tree.plan(("thing", SIX, PROBE))
    before = tree.bytes_()
    done = tree.run()
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        f"mods: thing: p.patch does not apply to the vLLM in {tree.site}; both tools rejected it. Rebase the patch on "
        "the source of this version, or use the version that it was made for.\n--- git apply (exit code 1):\n"
    )
    assert "error: patch failed: vllm/a.py:3" in done.stderr
    assert "--- patch --fuzz=5 (exit code 1):" in done.stderr
    assert "Hunk #1 FAILED at 3" in done.stderr
    assert tree.bytes_() == before
    assert not tree.record.exists()


def test_a_patch_goes_in_whole_or_not_at_all(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"a.py": SOURCE, "b.py": SOURCE.replace("line_6 = 6", "gone = 1")})
    tree.plan(("thing", SIX + patch("b.py", "line_6 = 6", "line_6 = 'six'"), PROBE))
    before = tree.bytes_()
    assert tree.run().returncode == 1
    assert tree.bytes_() == before


def test_a_failed_probe_puts_the_files_back(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    new = "--- /dev/null\n+++ b/vllm/new.py\n@@ -0,0 +1 @@\n+x = 1\n"
    tree.plan(("thing", SIX + new, "import vllm.new; assert vllm.new.x == 2, 'x is not 2'"))
    before = tree.bytes_()
    done = tree.run()
    assert done.returncode == 1
    assert "thing: its probe failed with exit code 1, so the mod has not taken effect; the files were restored." in (
        done.stderr
    )
    assert "AssertionError: x is not 2" in done.stderr
    assert tree.bytes_() == before
    assert not tree.record.exists()


def test_mods_build_on_each_other_in_order(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    second = SIX.replace("-line_6 = 6", "-line_6 = 'six'").replace("+line_6 = 'six'", "+line_6 = 'VI'")
    probe = "import vllm.a; assert vllm.a.line_6 in ('six', 'VI')"
    tree.plan(("one", SIX, probe), ("two", second, "import vllm.a; assert vllm.a.line_6 == 'VI'"))
    done = tree.run("one", "two")
    assert done.stdout.splitlines() == [
        "mods: one applied with git apply, 1 files, probe passed",
        "mods: two applied with git apply, 1 files, probe passed",
    ]
    before = tree.bytes_()
    again = tree.run("one", "two")
    assert again.stdout.count("already applied") == 2
    assert tree.bytes_() == before


def test_a_mod_without_a_patch_is_only_probed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.plan(("check", "", "import vllm.a; assert vllm.a.line_6 == 6"))
    assert tree.run().stdout == "mods: check needs no patch, 0 files, probe passed\n"
    tree.plan(("check", "", "raise SystemExit(3)"))
    tree.record.unlink()
    assert "check: its probe failed with exit code 3" in tree.run().stderr


def test_a_repository_above_does_not_swallow_the_patch(tmp_path: Path) -> None:
    """In a repository, git apply leaves out what a `diff --git` names below its root, without a word."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    tree = Tree(tmp_path)
    tree.plan(("thing", f"diff --git a/vllm/a.py b/vllm/a.py\n{SIX}", PROBE))
    assert tree.run().stdout == "mods: thing applied with git apply, 1 files, probe passed\n"


def test_an_image_without_git(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.plan(("thing", SIX, PROBE))
    path = tools(tmp_path / "bin", "patch")
    assert "applied with patch --fuzz=5" in tree.run(path=path).stdout
    assert "already applied" in tree.run(path=path).stdout


def test_an_image_with_neither_tool(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.plan(("thing", SIX, PROBE))
    done = tree.run(path=tools(tmp_path / "bin"))
    assert done.returncode == 1
    assert "--- git apply:\ngit is not installed in this image" in done.stderr
    assert "--- patch --fuzz=5:\npatch is not installed in this image" in done.stderr


# --- what is refused before anything is touched -----------------------------------------------


def other_hash(tree: Tree) -> None:
    assert tree.run().returncode == 0
    tree.plan(("thing", SIX, f"{PROBE}  # changed"))


def changed_patch(tree: Tree) -> None:
    (tree.context / "thing" / "p.patch").write_text(SIX.replace("'six'", "'VI'"), encoding="utf-8")


def broken_record(tree: Tree) -> None:
    tree.record.parent.mkdir()
    tree.record.write_text("{", encoding="utf-8")


REFUSED: list[tuple[Callable[[Tree], object], list[str], str]] = [
    (
        lambda tree: (tree.context / "plan.json").unlink(),
        [],
        "plan.json is missing in the build context; gb10.cluster's mods.plan_document writes it.",
    ),
    (lambda tree: (tree.context / "plan.json").write_text("{"), [], "plan.json is not valid JSON: "),
    (lambda _unused: None, ["other"], "The image wants the mods other, but "),
    (lambda _unused: None, ["thing", "thing"], "holds thing; plan the build again."),
    (changed_patch, [], "thing: thing/p.patch has the hash "),
    (lambda tree: (tree.context / "thing" / "p.patch").unlink(), [], "p.patch is not in the build context."),
    (
        lambda tree: tree.plan(("thing", SIX, PROBE), version="0.27.1"),
        [],
        "The patches were chosen for vLLM 0.27.1, but the image has 0.22.1; set vllm_version of the image in "
        "gb10_images to what its wheel is.",
    ),
    (lambda tree: shutil.rmtree(tree.site / "vllm-0.22.1.dist-info"), [], "holds no vllm-*.dist-info"),
    (other_hash, [], "thing: this image already has it with the hash "),
    (broken_record, [], "mods.json is not valid JSON "),
]


@pytest.mark.parametrize(("spoil", "names", "sentence"), REFUSED)
def test_refused(tmp_path: Path, spoil: Callable[[Tree], object], names: list[str], sentence: str) -> None:
    tree = Tree(tmp_path)
    tree.plan(("thing", SIX, PROBE))
    spoil(tree)
    before = tree.bytes_()
    done = tree.run(*names)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert tree.bytes_() == before


def test_suffixes_of_the_version_do_not_count(tmp_path: Path) -> None:
    tree = Tree(tmp_path, version="0.22.1rc1.dev124+gace95c9cf.d20260603.cu132")
    tree.plan(("thing", SIX, PROBE))
    assert tree.run().returncode == 0


def test_site_packages_are_found_where_vllm_is(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.plan(("thing", SIX, PROBE))
    env = {**os.environ, "PYTHONPATH": str(tree.site)}
    command = [sys.executable, str(SCRIPT), "--mods-dir", str(tree.context), "--record", str(tree.record)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree.recorded()["site_packages"] == str(tree.site)
    empty = subprocess.run([sys.executable, "-I", *command[1:]], capture_output=True, text=True, check=False)
    assert "finds no vllm package: the layer with vLLM must come before the mods." in empty.stderr
