# SPDX-License-Identifier: Apache-2.0
"""Mods of other projects: patches become a mod that the image's own program applies, all else is a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.plugin_utils._catalogue import owned
from ansible_collections.gb10.cluster.plugins.plugin_utils._recipes.mods import ModError, convert, mod_name
from ansible_collections.gb10.cluster.plugins.plugin_utils._vllm import mods as mods_logic

PACKAGES = "/usr/local/lib/python3.12/dist-packages"
#: Two files as git writes them: one changed, one new.
GIT = """From 0123 Mon Sep 17 00:00:00 2001
Subject: [PATCH] prose

diff --git a/vllm/some.py b/vllm/some.py
index 111..222 100644
--- a/vllm/some.py
+++ b/vllm/some.py
@@ -1,3 +1,3 @@ def f():
 one
-two
+--- two, changed

diff --git a/vllm/new.py b/vllm/new.py
new file mode 100644
index 000..333
--- /dev/null
+++ b/vllm/new.py
@@ -0,0 +1,2 @@
+first
+second
--
2.50.0
"""
PLAIN = f"""--- a{PACKAGES}/vllm/some.py	2026-01-01
+++ b{PACKAGES}/vllm/some.py	2026-01-02
@@ -1,2 +1,3 @@
 one
+between
 two
"""
GONE = "--- a/vllm/some.py\n+++ b/vllm/some.py\n@@ -1,2 +1 @@\n one\n-two\n"


@pytest.mark.parametrize(
    ("script", "patch"),
    [
        ("#!/bin/bash\nset -e\npatch -p1 -d / < a.patch", PLAIN),
        ('echo "Patching"\ncd $WORKSPACE_DIR\npatch --forward -p1 --directory=/ -i ./a.patch && exit 0', PLAIN),
        (f"cd {PACKAGES} && patch -p1 -N < ${{WORKSPACE_DIR}}/a.patch", GIT),
        (f"git -C {PACKAGES} apply \\\n  --verbose $WORKSPACE_DIR/a.patch", GIT),
        (f"cd {PACKAGES}/vllm\npatch -p2 < $PWD/a.patch", GIT),
        ("# nothing\ncd /opt/venv/lib/python3.12/site-packages; git apply $WORKSPACE_DIR/a.patch", GIT),
        (f"patch -p1 -d {PACKAGES} < a.patch", GONE),
    ],
)
def test_patches_become_a_mod_that_an_image_takes(tmp_path: Path, script: str, patch: str) -> None:
    made = convert("mods/Some_Fix/", {"run.sh": script, "a.patch": patch}, "0.30.0", "a project")
    assert made.name == "some-fix"
    assert set(made.files) == {"manifest.yml", "patches/0.30.0.patch"}
    written = {name: owned.seal(text) for name, text in made.files.items()}
    manifest = yaml.safe_load(written["manifest.yml"])
    mod, errors = mods_logic.parse_manifest(manifest, made.name, written)
    assert (errors, mod is not None) == ([], True)
    assert mod is not None
    plan = mods_logic.mods_plan({made.name: mod}, [made.name], "0.30.0")

    packages, mods = tmp_path / "packages", tmp_path / "mods"
    (packages / "vllm").mkdir(parents=True)
    (packages / "vllm" / "__init__.py").write_text("", encoding="utf-8")
    # An empty line ends the context of GIT's first hunk.
    (packages / "vllm" / "some.py").write_text("one\ntwo\n\n" if patch is GIT else "one\ntwo\n", encoding="utf-8")
    for name, text in written.items():
        (mods / made.name / name).parent.mkdir(parents=True, exist_ok=True)
        (mods / made.name / name).write_text(text, encoding="utf-8")
    probe = [sys.executable, "-c", plan[0]["probe"]]
    env = {"PYTHONPATH": str(packages)}
    assert subprocess.run(probe, env=env, check=False, capture_output=True).returncode == 1
    subprocess.run(["git", "apply", str(mods / plan[0]["patch_path"])], cwd=packages, check=True)
    assert subprocess.run(probe, env=env, check=False, capture_output=True).returncode == 0
    assert json.loads(json.dumps(plan[0]["files"]))[0] == "vllm/some.py"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.patch": PLAIN}, "has no run.sh"),
        ({"run.sh": "set -e\n# only words"}, "applies no patch: its run.sh does nothing that can be read here"),
        ({"run.sh": "patch -p1 -d / < b.patch"}, "applies b.patch, which its directory does not have"),
        ({"run.sh": "patch -d / < a.patch"}, "applies a patch without its file or -p: 'patch -d / < a.patch'"),
        ({"run.sh": "patch -R -p1 -d / < a.patch"}, "does more than apply patches: 'patch -R -p1 -d / < a.patch'"),
        ({"run.sh": "patch -p1 -d / < /tmp/a.patch"}, "applies a file from elsewhere: 'patch -p1 -d / < /tmp/a.patch'"),
        ({"run.sh": "patch -p1 -d / < ../a.patch"}, "applies a file from elsewhere: 'patch -p1 -d / < ../a.patch'"),
        ({"run.sh": "cd /x && patch -p1 < a.patch"}, "applies a file from elsewhere: 'cd /x && patch -p1 < a.patch'"),
        ({"run.sh": "curl -L http://x/1.diff | git apply"}, "fetches with curl: 'curl -L http://x/1.diff | git apply'"),
        ({"run.sh": "pip install x\npatch -p1 < a.patch"}, "fetches with pip: 'pip install x'"),
        ({"run.sh": "if true; then patch -p1 < a.patch; fi"}, "does more than apply patches: 'if true; then patch -p1"),
        ({"run.sh": "echo 1 > /etc/x"}, "does more than apply patches: 'echo 1 > /etc/x'"),
        ({"run.sh": "patch -p1 < a.patch || true"}, "does more than apply patches: 'patch -p1 < a.patch || true'"),
        ({"run.sh": "git apply --reject a.patch"}, "does more than apply patches: 'git apply --reject a.patch'"),
        ({"run.sh": "git apply"}, "applies no file: 'git apply'"),
        ({"run.sh": "echo 'open"}, "has a line in run.sh that cannot be read"),
        ({"run.sh": "patch -p1 -d /etc < a.patch"}, "changes /etc/vllm/some.py, which is not vLLM in its packages"),
        ({"run.sh": "patch -p9 -d / < a.patch"}, "changes /, which is not vLLM in its packages"),
        (
            {"run.sh": f"patch -p1 -d {PACKAGES} < a.patch", "a.patch": GONE.replace("vllm", "..")},
            "which is not vLLM in its packages",
        ),
        (
            {"run.sh": "patch -p1 -d / < a.patch", "a.patch": "rename from a\n"},
            "has a patch that renames, copies or is binary (a.patch)",
        ),
        ({"run.sh": "patch -p1 -d / < a.patch", "a.patch": "words"}, "has a patch that is empty"),
        ({"run.sh": "patch -p1 -d / < a.patch", "a.patch": PLAIN.rsplit("\n", 2)[0] + "\n"}, "has a patch that "),
    ],
)  # fmt: skip
def test_what_is_no_mere_patch_is_a_sentence(files: dict[str, str], sentence: str) -> None:
    given = {"a.patch": GIT if "/etc <" in files.get("run.sh", "") else PLAIN, **files}
    if "a.patch" in files and "run.sh" not in files:
        given = files
    with pytest.raises(ModError) as problem:
        convert("mods/some", given, "0.30.0", "a project")
    assert sentence in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [("mods/fix-Some_1.2/", "fix-some-1-2"), ("@registry/a", "a"), ("x", "x")],
)
def test_the_name_of_a_mod(text: str, name: str) -> None:
    assert mod_name(text) == name
