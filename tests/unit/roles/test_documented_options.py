# SPDX-License-Identifier: Apache-2.0
"""Every ``-e name=value`` of the documentation is run as the text that a command line gives; a wrong value is refused.

One run of ansible-playbook takes them all: a role's option through the role's own border (the check of its argument
specification, which comes before its first task; nothing else of a role runs), one of a playbook through the
expression of the playbook and the specification of the module that gets it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.parsing.convert_bool import boolean

from tests.unit.helper import made_once
from tests.unit.roles.documented import (
    REPO,
    borders,
    documented,
    in_playbooks,
    module_option,
    names,
    read_by_defaults,
    values_in,
)
from tests.unit.roles.plays import run_play

#: Once taken for something else as text: fatal after a change, or false taken for true.
ALWAYS = {
    "edge_tls": "true",
    "edge_firewall": "false",
    "engine_memory_floor_gib": "1.5",
    "engine_drop_caches": "false",
    "engine_config_check": "false",
    "fabric_ssh": "true",
    "doctor_throughput": "true",
    "watch_enabled": "false",
}
#: Where only a word stands for the value in the documentation, this is one.
EXAMPLES = {"bool": "true", "int": "1", "float": "1.5", "list": "a,b"}
CONVERSIONS = {"bool": boolean, "int": int, "float": float}
WRONG = {"bool": "perhaps", "int": "many", "float": "many"}
PYTHON = {"bool": bool, "int": int, "float": float, "str": str, "path": str, "list": list, "dict": dict, "raw": str}
#: What a role's defaults read of a plan.
PLANNED: dict[str, Any] = {
    "gb10_plan": {
        "spec": {
            "repo": "org/model",
            "revision": "main",
            "image": "vllm-node",
            "mods": [],
            "serve": {},
            "expected": {},
            "shm_size": "1g",
            "size_gib": 1,
        },
        "head": "localhost",
        "members": ["localhost"],
        "head_address": "192.0.2.1",
        "addresses": {"localhost": "192.0.2.1"},
        "api_url": "http://192.0.2.1:8000",
        "multi_node": False,
    },
    "gb10_image": {"tag": "gb10/x:1", "python": "python3"},
}


class Case(NamedTuple):
    """One value of one variable: what reads it, and the specification that has to take it or to refuse it."""

    name: str
    value: Any
    option: str
    #: Role and entry point, or nothing; else the expression of a playbook.
    role: tuple[str, str] | None
    expression: str
    spec: dict[str, Any]
    right: bool
    #: What a playbook says when its condition refuses the value.
    sentence: str = ""

    @property
    def batch(self) -> str:
        """Cases of one batch are one task: those of one entry point, and either right or wrong, have one."""
        return f"{self.role} {self.right}" if self.role else repr(self)


def task_of(batch: list[Case]) -> dict[str, Any]:
    """Return the task that gives the values of some cases to what reads them."""
    task: dict[str, Any] = {"vars": {case.name: case.value for case in batch}, "tags": ["border"]}
    case = batch[0]
    if case.role:
        task["ansible.builtin.include_role"] = {"name": f"gb10.cluster.{case.role[0]}", "tasks_from": case.role[1]}
    elif case.sentence:
        task["ansible.builtin.assert"] = {"that": case.expression, "fail_msg": case.sentence}
    else:
        checked = {"argument_spec": {case.option: case.spec}, "provided_arguments": {case.option: case.expression}}
        task["ansible.builtin.validate_argument_spec"] = checked
    return task


def batches(every: list[Case]) -> list[list[Case]]:
    """Put cases together that one task can try: no variable twice."""
    found: dict[tuple[str, int], list[Case]] = {}
    for case in every:
        round_ = 0
        while any(other.option == case.option for other in found.get((case.batch, round_), [])):
            round_ += 1
        found.setdefault((case.batch, round_), []).append(case)
    return list(found.values())


def wrong_value(spec: dict[str, Any]) -> str | None:
    """Return a text that a specification cannot take; None where it takes each."""
    if spec.get("choices"):
        return "none-of-them"
    return WRONG.get(spec.get("elements", "") if spec.get("type") == "list" else spec.get("type", "str"))


def readers(name: str) -> list[tuple[str, tuple[str, str] | None, str, dict[str, Any], str]]:
    """Return (option, role and entry point, expression, specification, sentence) of all that reads a variable."""
    option = name if name in borders() else read_by_defaults().get(name, "")
    if option in borders():
        role, entry, spec = borders()[option]
        return [(option, (role, entry), "", spec, "")]
    taken, conditions = in_playbooks()
    found: list[Any] = [
        (each.option, None, each.expression, module_option(each.module, each.option), "")
        for each in taken
        if names(each.expression, name) and "{{" in each.expression
    ]
    found += [
        ("", None, each.expression, {"type": "bool"}, each.module)
        for each in conditions
        if names(each.expression, name)
    ]
    return found


def cases() -> list[Case]:
    """Return every documented value, and a wrong one for each variable whose specification does not take every text."""
    every = documented()
    for name, value in ALWAYS.items():
        every.setdefault(name, []).append(value)
    found = []
    for name, values in sorted(every.items()):
        for option, role, expression, spec, sentence in readers(name):
            kind = spec.get("type", "str")
            tried = [(value, True) for value in values or [EXAMPLES.get(kind, "text")]]
            tried += [(wrong, False) for wrong in [wrong_value(spec)] if wrong is not None]
            found += [Case(name, value, option, role, expression, spec, right, sentence) for value, right in tried]
    return found


def answers_of(folder: Path, every: list[list[Case]]) -> list[str]:
    """Return what a play answers to each batch."""
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.add_host": {"name": "localhost", "groups": ["gx10", "head"]}, "tags": ["border"]}
    ]
    why = "{{ (ansible_failed_result.argument_errors | default([ansible_failed_result.msg])) | join(' ') }}"
    for number, batch in enumerate(every):
        noted = {"ansible.builtin.set_fact": {f"said_{number}": why}, "tags": ["border"]}
        tasks.append({"block": [task_of(batch)], "rescue": [noted]})
    answers = ", ".join(f"said_{number} | default('')" for number in range(len(every)))
    report = {"content": "{{ [" + answers + "] | to_json }}", "dest": str(folder / "said.json"), "mode": "0600"}
    tasks.append({"ansible.builtin.copy": report, "tags": ["border"]})
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(path) for path in sorted((REPO / "playbooks/group_vars/all").glob("*.yml"))],
        "vars": PLANNED,
        "tasks": tasks,
    }
    ran = run_play(folder, yaml.safe_dump([play], sort_keys=False), "--tags", "border")
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    answered: list[str] = json.loads((folder / "said.json").read_text(encoding="utf-8"))
    return answered


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, str]]:
    """Return each case and what it was answered; nothing where its value was taken."""
    every = batches(cases())
    with made_once(tmp_path_factory, "border") as (folder, kept):
        if not kept:
            kept["answered"] = answers_of(folder, every)
    return [(case, answer) for batch, answer in zip(every, kept["answered"], strict=True) for case in batch]


def test_every_documented_variable_is_read_by_something() -> None:
    unread = [name for name in documented() if not readers(name)]
    assert not unread, f"the documentation names {unread}, and no role and no playbook reads them"


def test_documented_values_are_taken(said: list[tuple[Case, str]]) -> None:
    answered = [(case, answer) for case, answer in said if case.right]
    assert len(answered) > 70
    refused = [f"-e {case.name}={case.value}: {answer}" for case, answer in answered if answer]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("case", [case for case in cases() if case.right and case.role], ids=lambda case: case.name)
def test_the_text_becomes_a_value_of_its_type(case: Case) -> None:
    """What the specification makes of it, and what the role's own conversion does (tests/lint/test_types.py)."""
    result = ArgumentSpecValidator({case.option: case.spec}).validate({case.option: case.value})
    assert not result.error_messages
    value: Any = result.validated_parameters[case.option]
    kind = case.spec.get("type", "str")
    if kind in CONVERSIONS:
        assert value == CONVERSIONS[kind](case.value)
    if "elements" in case.spec:
        assert {type(each) for each in value} <= {PYTHON[case.spec["elements"]]}
    assert type(value) is PYTHON[kind]


def test_wrong_values_are_refused_by_name(said: list[tuple[Case, str]]) -> None:
    wrong = [(case, answer) for case, answer in said if not case.right]
    assert len(wrong) > 20
    taken = [
        f"-e {case.name}={case.value}: {answer or 'taken'}"
        for case, answer in wrong
        if not re.search(
            re.escape(case.sentence[:40]) or rf"\b{case.option}\b.*(unable to convert to|must be one.*of:)", answer
        )
    ]
    assert not taken, "\n".join(taken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("| `-e a_b=1,4 -e c=no` |", [("a_b", "1,4"), ("c", "no")]),
        ("run it with -e a=true.", [("a", "true")]),
        ('-e a="x\\|y z"', [("a", "x|y z")]),
        ("#   -e a=none|all   what", [("a", "none"), ("a", "all")]),
        ("`-e a=<name>`, `-e b=`, `-e c=FILE:VARIANT`, `-e d=…`", [("a", None), ("b", None), ("c", None), ("d", None)]),
        ("""-e '{"a": [1], "b": "x"}'""", [("a", [1]), ("b", "x")]),
        ("--extra-vars a=1, and sed -e s/a=b/c/, grep -e x; made-e a=1", [("a", "1")]),
    ],
)
def test_the_parser_itself(text: str, expected: list[tuple[str, Any]]) -> None:
    assert list(values_in(text)) == expected


def test_what_nothing_reads_has_no_reader() -> None:
    assert readers("no_such_variable") == []
    assert not names("{{ gb10_state_dir }}/engine", "engine")
