# SPDX-License-Identifier: Apache-2.0
"""Every playbook that changes a node takes the lease of what it changes, and the runbook says which."""

from __future__ import annotations

import re

import yaml

from tests.lint.collection import REPO

#: Playbooks that change no node.
READS = frozenset(
    """
    add_model bench doctor dynamo_render import_recipe init lease logs memory models plan render status validate verify
    wheels
    """.split()
)
BOTH = ("cluster", "deployment")


#: Playbooks that change no node but a Kubernetes cluster, which has no lease.
KUBERNETES = frozenset({"dynamo", "dynamo_bench", "dynamo_delete", "dynamo_status"})


def leases() -> dict[str, tuple[str, ...]]:
    """Return what each playbook leases before its own plays; nothing for one that takes no lease itself."""
    found = {}
    for path in (REPO / "playbooks").glob("*.yml"):
        taken: tuple[str, ...] = ()
        for play in yaml.safe_load(path.read_text(encoding="utf-8")):
            if play.get("ansible.builtin.import_playbook") == "lease.yml":
                taken = tuple(sorted(play.get("vars", {}).get("lease_scopes", BOTH)))
                break
            assert play.get("ansible.builtin.import_playbook") == "plan.yml" or path.stem in READS | KUBERNETES, (
                f"{path.name}: the lease comes before everything but the plan"
            )
        found[path.stem] = taken
    return found


def test_what_changes_a_node_takes_a_lease() -> None:
    found = leases()
    without = {name for name, taken in found.items() if not taken}
    assert without == READS | KUBERNETES, "a playbook takes a lease, or is listed in READS"


def test_a_playbook_leases_what_it_imports_leases() -> None:
    """A run takes all leases at its start: none is refused in its middle."""
    found = leases()
    for name, taken in found.items():
        for play in yaml.safe_load((REPO / "playbooks" / f"{name}.yml").read_text(encoding="utf-8")):
            book = str(play.get("ansible.builtin.import_playbook", "")).removesuffix(".yml")
            assert set(found.get(book, ())) <= set(taken), f"{name}.yml imports {book}.yml and leases {taken} only"


def test_the_runbook_names_them() -> None:
    text = (REPO / "docs" / "runbook.md").read_text(encoding="utf-8")
    shown: dict[str, tuple[str, ...]] = {}
    for row, scopes in {"deployment": ("deployment",), "cluster": ("cluster",), "both": BOTH}.items():
        names = re.search(rf"^\| {row} \| (.*) \|$", text, re.MULTILINE)
        assert names
        shown |= dict.fromkeys(re.findall(r"`([a-z_-]+)`", names[1]), scopes)
    assert {name.replace("-", "_"): scopes for name, scopes in shown.items()} == {
        name: taken for name, taken in leases().items() if taken
    }
