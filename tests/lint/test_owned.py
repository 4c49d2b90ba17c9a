# SPDX-License-Identifier: Apache-2.0
"""Teardown's tables against what the roles name: nothing that a role brings is forgotten, nothing is listed in vain.

Every absolute path, unit and package that a role, or code of the nodes, names counts as one that it writes. So a new
one is given back, or removed, or has its reason in one of the tables below.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from ansible_collections.gb10.cluster.plugins.module_utils._node import files
from ansible_collections.gb10.cluster.plugins.module_utils._node.restore import OWNED
from tests.lint.collection import REPO
from tests.lint.test_kept import tasks

#: They run on the control node, or inside of the image that is built.
ELSEWHERE = ("roles/dynamo/", "roles/init/", "roles/image/templates/Dockerfile.j2")
#: Variables whose value is no text of the role's own.
SAMPLES = {
    "engine_plan.model": "m",
    "engine_plan.unit": "vllm-m.service",
    "gb10_image.name": "vllm-node",
    "gb10_state_dir": "/var/lib/gb10",
    "host_operator": "ann",
    "monitor_grafana_provisioning": "/etc/grafana/provisioning",
    "__fabric_identity.user": "ann",
}
UNITS = "/etc/systemd/system"
#: What is named and not written.
READ = {
    "/etc/cdi*": "the owner's description of the GPU",
    "/etc/dgx-release": "a release",
    "/etc/docker/daemon.json": "module docker_daemon, of role host, writes it; signatures name it in a remedy",
    "/etc/os-release": "a release",
    "/etc/ssh": "the node's host keys",
    "/etc/sysctl.d": "the directory alone",
    UNITS: "the directory alone: units are looked for by name",
    f"{UNITS}/multi-user.target.wants": "which unit is enabled",
    "/lib/modules": "the kernel's modules",
    "/root/.cache/vllm*": "places in the container",
    "/root/dev/infiniband": "below a process in /proc",
    "/usr/bin*": "programs of packages",
    "/usr/lib": "programs of packages",
    "/usr/lib/systemd/system*": "units of packages",
    "/usr/local/cuda/*": "named in a remedy",
    "/usr/sbin*": "programs of packages",
    "/var/lib/apt/*": "lists of packages; apt writes them",
    "/var/lib/containerd": "images, of the Docker Engine",
    "/var/lib/docker*": "images, of the Docker Engine",
    "/var/run/cdi": "the owner's description of the GPU",
    "/var/run/docker.sock": "the Docker Engine",
    "base: ~/.docker/config.json": "logins to registries; what role host merges into it is kept",
    "bench: ~/.local/share": "the control node's results",
    "engine: gb10-edge.service": "the unit of an engine names the proxy",
    "edge: firewalld.service": "the owner's",
    "edge: ufw.service": "the owner's",
    "fabric: NetworkManager.service": "whether it runs",
    "fabric: gb10-node": "a device, and NetworkManager's name for it",
    "monitor: gb10-image-*.service": "a transfer, whose bytes are counted",
    "monitor: gb10-weights.service": "a transfer, whose bytes are counted",
}
#: What is written and stays (docs/roles/host.md says so).
STAYS = {
    "/var/lib/gb10*": "weights, images and records",
    "/var/lib/prometheus*": "measurements; the packages own the directory",
    "iproute2": "host has it as well",
    "openssh-client": "part of every node that Ansible reaches: sshd depends on it",
    "fabric: gb10-throughput": "transient, for the seconds of a measurement",
    "fabric: ~ann/.ssh/authorized_keys": "host has a block in it as well; teardown.yml takes fabric's by its role",
}
#: Task → why a module writes there that notes nothing.
UNNOTED = {
    "roles/host/tasks/run.yml: systemd_service": "the desktop; it is back at the next boot",
    "roles/init/tasks/key.yml: authorized_key": "without it, nobody would reach the box afterwards",
}
#: Files of the nodes' code whose paths belong to a role of `OWNED`, by the beginning of their name.
AREAS = ("edge", "engine", "fabric", "monitor", "watch")

PATH = re.compile(r"(?<![\w.}/:*-])(?:~\w*/\.|/(?:etc|usr|var|opt|srv|root|home|lib)/)[\w./@*{}-]*")
UNIT = re.compile(r"(?<![\w./-])[a-z][\w@-]*\.(?:service|timer|path|socket)\b(?!\.)")
UNIT_IN_CODE = re.compile(r"(?:gb10|vllm)-(?:[\w-]*\w)|[\w-]+\.(?:service|timer|path)")
#: Modules of other collections that write on a node and note nothing for the teardown.
WRITERS = frozenset(
    """
    apt apt_key apt_repository assemble authorized_key blockinfile copy cron get_url git ini_file known_hosts lineinfile
    mount package pip replace service sysctl systemd systemd_service template unarchive
    """.split()
)
JOINED = re.compile(r"(\b[\w.]+|'[^']*')((?: ~ (?:[\w.]+|'[^']*'))+)")

Names = dict[str, set[str]]


def strings(value: Any) -> Iterator[str]:
    """Yield every text of a YAML document but what a task says."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("fail_msg", "msg"):
                yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def with_values(text: str, values: dict[str, str]) -> str:
    """Put values in the place of ``{{ name }}``, and join the texts of ``name ~ '/file'``."""

    def joined(found: re.Match[str]) -> str:
        parts = found.group().split(" ~ ")
        if not all(part.startswith("'") or part in values for part in parts):
            return found.group()
        return "'" + "".join(part[1:-1] if part.startswith("'") else values[part] for part in parts) + "'"

    text = re.sub(r"\{\{ ([\w.]+) \}\}", lambda found: values.get(found.group(1), found.group()), text)
    return JOINED.sub(joined, text)


def of_roles() -> Names:
    """Return path, unit or package → the roles that name it."""
    found: Names = defaultdict(set)
    lent: list[tuple[str, str]] = []
    texts: dict[str, list[str]] = defaultdict(list)
    for path in sorted(REPO.glob("roles/*/*/*")):
        name = path.relative_to(REPO).as_posix()
        if name.startswith(ELSEWHERE) or path.suffix not in (".yml", ".j2") or path.parent.name in ("meta", "files"):
            continue
        text = path.read_text(encoding="utf-8")
        role = path.parts[-3]
        document = None if path.suffix == ".j2" or path.parent.name == "templates" else yaml.safe_load(text)
        variables = document if isinstance(document, dict) else {}
        values = SAMPLES | {key: value for key, value in variables.items() if isinstance(value, str)}
        words = with_values(text if document is None else "\n".join(strings(document)), values)
        texts[name].append(words)
        for each in (*PATH.findall(words), *(UNIT.findall(words) if path.suffix == ".yml" else ())):
            found[each.rstrip("/")].add(role)
        for key, value in variables.items():
            if key.endswith("_packages") and not key.startswith("host_"):
                for package in value if isinstance(value, list) else re.findall(r"'([\w-]+)'", value):
                    found[package].add(role)
        for package in re.findall(r"apt_packages:\s+names: \[([\w, -]+)\]", text):
            for each in package.split(", "):
                found[each].add(role)
        for other, file in re.findall(r"name: gb10\.cluster\.(\w+)\n\s+tasks_from: (\w+)", text):
            lent.append((role, f"roles/{other}/tasks/{file}.yml"))
    for role, name in lent:
        for each in PATH.findall("".join(texts[name])):
            found[each].add(role)
    return found


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a Python file but its documentation."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            said |= {id(node.value)} if node.targets[0].id in ("DOCUMENTATION", "EXAMPLES", "RETURN") else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def of_code() -> Names:
    """Return path or unit → the roles whose code of the nodes names it; ``base`` is what no single role takes away."""
    found: Names = defaultdict(set)
    places = ("modules/*.py", "module_utils/*/*.py", "filter/host.py", "plugin_utils/_fabric/*.py")
    for path in sorted(file for place in places for file in (REPO / "plugins").glob(place)):
        if path.name == "restore.py":
            continue
        stem = (path.stem if path.parent.name == "modules" else path.parent.name.strip("_")).split("_")[0]
        role = stem if stem in AREAS else "base"
        for text in texts_of(path):
            for each in (*PATH.findall(text), *([text] if UNIT_IN_CODE.fullmatch(text) and role != "base" else ())):
                found[each.rstrip("/")].add(role)
    return found


def below(name: str, directories: Iterable[str]) -> bool:
    """Whether a path is one of the directories or below one."""
    return f"{name}/".startswith(tuple(f"{each}/" for each in directories))


def matching(name: str, patterns: Iterable[str]) -> set[str]:
    """Return the patterns that a name matches."""
    return {pattern for pattern in patterns if fnmatchcase(name, pattern)}


@pytest.fixture(scope="module")
def named() -> Names:
    """Path, unit or package → who names it, without what is read."""
    found = of_roles()
    for name, roles in of_code().items():
        found[name] |= roles
    read = {name: {role for role in roles if not excused(name, role, READ)} for name, roles in found.items()}
    return {name: roles for name, roles in sorted(read.items()) if roles}


def excused(name: str, role: str, table: Iterable[str]) -> set[str]:
    """Return the entries of a table that hold for what a role names."""
    return matching(name, table) | matching(f"{role}: {name}", table)


def test_every_path_is_given_back_or_removed_or_has_a_reason_to_stay(named: Names) -> None:
    kept = (*(root.rstrip("/") for root in files.KEPT_ROOTS), *files.OWN)
    forgotten = {
        name: sorted(roles)
        for name, roles in named.items()
        if name.startswith("/") and not below(name, kept) and not all(excused(name, role, STAYS) for role in roles)
    }
    assert forgotten == {}
    for name in (name for name in named if name.startswith("~")):
        assert files.KEPT_IN_HOMES.search("/home/ann/" + name.partition("/")[2] + "/"), name


def test_what_a_role_brings_goes_with_it_and_with_no_other(named: Names) -> None:
    """``nginx-light`` stays until both of its roles go; what the roles below bring (``base``) goes with none alone."""
    wrong = {}
    for name, roles in named.items():
        brings = {role if role in OWNED else "base" for role in roles if not excused(name, role, STAYS)}
        if below(name, files.OWN) or not brings:
            continue
        takes = {role for role, owned in OWNED.items() if matching(name, owned.names)}
        if takes != (set() if "base" in brings else brings):
            wrong[name] = f"brought by {sorted(brings)}, taken away with {sorted(takes)}"
    assert wrong == {}


def test_each_directory_of_our_own_goes_with_one_role(named: Names) -> None:
    own = {entry: role for role, owned in OWNED.items() for entry in owned.own}
    assert len(own) == sum(len(owned.own) for owned in OWNED.values())
    top = files.OWN[0] + "/"
    ours = {name: roles for name, roles in named.items() if name.startswith(top)}
    assert {name.removeprefix(top).split("/")[0] for name in ours} == set(own)
    for entry, role in own.items():
        assert any(role in roles for name, roles in ours.items() if below(name, [top + entry])), f"{role}: no {entry}"


def test_every_entry_of_the_tables_is_of_use(named: Names) -> None:
    # A unit goes under its name, its file under its path: one pattern for the two.
    patterns = {(role, pattern.removeprefix(f"{UNITS}/")) for role, owned in OWNED.items() for pattern in owned.names}
    used = {
        (role, pattern)
        for name, roles in named.items()
        for role in roles & set(OWNED)
        for pattern in {each.removeprefix(f"{UNITS}/") for each in matching(name, OWNED[role].names)}
    }
    assert patterns - used == set()
    everything = of_roles()
    for name, roles in of_code().items():
        everything[name] |= roles
    reasons = READ | STAYS
    needed = (excused(name, role, reasons) for name, roles in everything.items() for role in roles)
    assert set().union(*needed) == set(reasons)


def test_no_task_writes_by_a_module_that_keeps_no_note() -> None:
    found = set()
    for path in sorted(REPO.glob("roles/*/tasks/*.yml")):
        for task in tasks(yaml.safe_load(path.read_text(encoding="utf-8")) or []):
            elsewhere = f"roles/{path.parts[-3]}/" in ELSEWHERE
            if "delegate_to" in task if elsewhere else task.get("delegate_to") != "localhost":
                names = {key.rpartition(".")[2] for key in task if key.startswith(("ansible.", "community."))}
                found |= {f"{path.relative_to(REPO)}: {name}" for name in names & WRITERS}
    assert found == set(UNNOTED)


def test_the_keys_of_the_fabric_go_with_it() -> None:
    """Its block in authorized_keys and its key are in a home, where role host has a block of its own."""
    (play,) = (play for play in yaml.safe_load((REPO / "playbooks/teardown.yml").read_text("utf-8")) if "tasks" in play)
    names = [task["name"] for task in play["tasks"]]
    (task,) = (task for task in play["tasks"] if "ansible.builtin.include_role" in task)
    assert task["ansible.builtin.include_role"] == {"name": "gb10.cluster.fabric", "tasks_from": "ssh_absent"}
    assert names.index(task["name"]) < names.index("Restore what was kept before the first change")
    condition = jinja2.Environment(autoescape=False).compile_expression(task["when"])
    assert [condition(teardown_roles=roles) for roles in (["fabric", "engine"], ["monitor"])] == [True, False]
