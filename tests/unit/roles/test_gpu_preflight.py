# SPDX-License-Identifier: Apache-2.0
"""What the role host accepts as Docker's way to the GPU: what the engine asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.unit.roles.plays import REPO, run_play

TASK = "Check that containers can use the GPU"
#: Runtimes of daemon.json, whether there is a CDI description, engine_gpu_args if the owner changed them, accepted.
CASES: tuple[tuple[list[str], bool, list[str] | None, bool], ...] = (
    (["nvidia"], False, None, True),
    ([], True, None, False),
    ([], True, ["--device", "nvidia.com/gpu=all"], True),
    ([], False, ["--device", "nvidia.com/gpu=all"], False),
)


def test_the_runtime_is_required_where_the_engine_names_it(tmp_path: Path) -> None:
    role = REPO / "roles" / "host"
    tasks = yaml.safe_load((role / "tasks" / "preflight.yml").read_text(encoding="utf-8"))
    (task,) = [each for each in tasks if each["name"] == TASK]
    run: list[dict[str, Any]] = []
    for number, (runtimes, cdi, arguments, _accepted) in enumerate(CASES):
        node = {"gpu": {"present": True, "container_toolkit": True}, "docker": {"runtimes": runtimes, "cdi": cdi}}
        given = {"__host_node": {"node": node}, **({"engine_gpu_args": arguments} if arguments else {})}
        run.append(
            {**task, "name": f"Case {number}", "vars": given, "ignore_errors": True, "register": f"case{number}"}
        )
    shown = ", ".join(f"case{number} is not failed" for number in range(len(CASES)))
    run.append({"ansible.builtin.debug": {"msg": f"{{{{ [{shown}] }}}}"}})
    play = {"hosts": "all", "gather_facts": False, "vars": {"host_docker": True}, "tasks": run}
    play["vars_files"] = [str(role / "vars" / "main.yml")]
    done = run_play(tmp_path, yaml.safe_dump([play]))
    assert done.returncode == 0, done.stdout
    printed = yaml.safe_load(done.stdout.rsplit("msg:", 1)[1].split("\nPLAY RECAP")[0])
    assert printed == [accepted for *_rest, accepted in CASES], done.stdout
    assert "for which engine_gpu_args asks; a CDI description does not give it" in " ".join(done.stdout.split())
