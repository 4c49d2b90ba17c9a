# SPDX-License-Identifier: Apache-2.0
"""The project's contracts: where model knowledge may stand, what must be documented and tested, how names are formed.

Each list of exceptions only shrinks: an entry that is no longer needed fails the test that it was made for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (REPO / "roles").iterdir() if path.is_dir())
#: A playbook without a role has variables of its own, as status_json.
PLAYBOOKS = sorted(path.stem for path in (REPO / "playbooks").glob("*.yml"))

#: What -e may name without the prefix of a role.
SELECTORS = frozenset({"model", "placement", "recipe", "target", "repo", "revision", "nodes", "engine", "take_over"})

#: Names that Ansible or Jinja define themselves.
DEFINED = frozenset(
    """
    ansible_check_mode ansible_diff_mode ansible_facts ansible_failed_result ansible_failed_task ansible_host
    ansible_loop ansible_play_hosts ansible_play_hosts_all ansible_playbook_python ansible_user ansible_version
    _ group_names groups hostvars inventory_dir inventory_hostname item lookup omit playbook_dir q query role_path
    """.split()
)

# --- no model outside its file --------------------------------------------------------------------------

#: File → why it names models of the catalogue.
NAMES_A_MODEL: Mapping[str, str] = {
    "plugins/plugin_utils/_catalogue/published.json": "an option of vLLM has a model's name in it",
    "tests/unit/plugins/module_utils/memory_models.py": "figures of published runs",
    "tests/unit/plugins/module_utils/test_memory_advice.py": "figures of published runs",
    "tests/unit/plugins/module_utils/test_memory_configs.py": "shapes of published models",
    "tests/unit/plugins/module_utils/test_memory_families.py": "shapes of published models",
    "tests/unit/plugins/module_utils/test_memory_fit.py": "figures of published runs",
    "tests/unit/plugins/module_utils/test_memory_geometry.py": "shapes of published models",
    "tests/unit/plugins/module_utils/test_memory_kv.py": "figures of published runs",
    "tests/unit/plugins/module_utils/test_memory_model.py": "figures of published runs",
    "tests/unit/plugins/module_utils/test_memory_plan.py": "figures of published runs",
    "tests/unit/plugins/plugin_utils/test_mods.py": "a mod of the collection has a model's name",
    "tests/unit/plugins/plugin_utils/test_serve_args.py": "a mod of the collection has a model's name",
}
MECHANISM = ("roles", "plugins", "tests/unit/plugins", "tests/unit/roles", "tests/unit/lab", "tests/unit/scripts")


def model_words() -> re.Pattern[str]:
    """Return what names a model of the catalogue: its name, in both spellings, and its repository."""
    words: set[str] = set()
    for path in (REPO / "playbooks" / "group_vars").glob("model_*.yml"):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["model_spec"]
        words |= {re.escape(spec["name"]).replace(r"\-", "[-_]"), re.escape(spec["repo"].split("/")[1])}
    assert words, "no model found: the check would pass without checking anything"
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(sorted(words))})(?![A-Za-z0-9])")


def texts(*trees: str) -> Iterator[tuple[str, str]]:
    """Yield (path in the repository, text) of every text file in some directories; tables of options are data."""
    for tree in trees:
        for path in sorted((REPO / tree).rglob("*")):
            name = path.relative_to(REPO).as_posix()
            if path.is_file() and "__pycache__" not in name and "/flags/" not in name:
                try:
                    yield name, path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue


def test_adding_a_model_is_adding_a_file() -> None:
    words = model_words()
    found = {name: hits for name, text in texts(*MECHANISM) if (hits := sorted(set(words.findall(text))))}
    unknown = {name: hits for name, hits in found.items() if name not in NAMES_A_MODEL}
    assert not unknown, f"model knowledge belongs to group_vars/model_*.yml: {unknown}"
    done = sorted(NAMES_A_MODEL.keys() - found.keys())
    assert not done, f"no longer needed in NAMES_A_MODEL: {done}"


# --- everything documented and tested -------------------------------------------------------------------


def test_every_role_has_a_scenario() -> None:
    missing = {role for role in ROLES if not (REPO / "molecule" / role / "molecule.yml").is_file()}
    assert missing == set(), "molecule test -s <role> must work for every role"


def test_every_filter_is_documented() -> None:
    names: set[str] = set()
    for path in (REPO / "plugins" / "filter").glob("*.py"):
        module = importlib.import_module(f"ansible_collections.gb10.cluster.plugins.filter.{path.stem}")
        names |= set(module.FilterModule().filters())
    pages = {path.stem: path for path in (REPO / "plugins" / "filter").glob("*.yml")}
    assert names == pages.keys()
    for name, path in pages.items():
        page = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert page["DOCUMENTATION"]["name"] == name
        assert page["DOCUMENTATION"]["options"]["_input"]["description"]
        assert page["EXAMPLES"].strip()
        assert page["RETURN"]["_value"]["description"]


# --- names ----------------------------------------------------------------------------------------------

#: Variables of a command line that have no prefix yet, or that keep an old name for one release.
OLD_NAMES = frozenset({"canary", "file", "grep", "json", "lines", "render_dir", "since", "units"})
#: Roles whose constants in vars/ still begin with two underscores, as registers do.
OLD_CONSTANTS: frozenset[str] = frozenset()


def prefixes(role: str) -> tuple[str, str, str]:
    """Return the beginnings of a role's variables: public, constant, register."""
    return f"{role}_", f"_{role}_", f"__{role}_"


def known_name(name: str) -> bool:
    """Return whether a variable belongs to a role, a playbook, the cluster's settings, the selectors or Ansible."""
    return (
        name in SELECTORS
        or name in DEFINED
        or name.startswith("gb10_")
        or any(f"{name}_".startswith(prefix) for owner in (*ROLES, *PLAYBOOKS) for prefix in prefixes(owner))
    )


def test_documented_command_lines_name_known_variables() -> None:
    found: dict[str, str] = {}
    for path in [*REPO.glob("*.md"), REPO / "Makefile"]:
        found |= given(path.name, path.read_text(encoding="utf-8"))
    for name, text in texts("docs", "playbooks", "roles", "plugins"):
        found |= given(name, text)
    assert {"model"} <= found.keys()
    unknown = {name: where for name, where in found.items() if not known_name(name) and name not in OLD_NAMES}
    assert not unknown, f"-e takes {', '.join(sorted(SELECTORS))} or a variable with its role's prefix: {unknown}"


def given(where: str, text: str) -> dict[str, str]:
    """Return variable → file for each ``-e name=`` and ``-e '{"name": ...``."""
    names = re.findall(r"""(?:-e|--extra-vars)[ =]["']?(?:\{\s*"?)?([A-Za-z_]\w*)["']?\s*[=:]""", text)
    return dict.fromkeys(names, where)


def templates(value: Any, *, expression: bool = False) -> Iterator[str]:
    """Yield each Jinja template of a YAML document; conditions become templates."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from templates(inner, expression=key in ("when", "that", "until", "changed_when", "failed_when"))
    elif isinstance(value, list):
        for inner in value:
            yield from templates(inner, expression=expression)
    elif isinstance(value, str):
        if expression and "{{" not in value:
            yield "{{ " + value + " }}"
        elif "{{" in value or "{%" in value:
            yield value


class _Every(dict[str, Any]):
    """Filters and tests of every name, so that templates parse without Ansible's plugins."""

    def __missing__(self, name: str) -> Any:
        return lambda value, *_more, **_named: value

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


def template_environment() -> jinja2.Environment:
    """Return an environment that parses Ansible's templates."""
    environment = jinja2.Environment(autoescape=False, extensions=["jinja2.ext.do"])
    environment.filters, environment.tests = _Every(), _Every()
    return environment


def variables(value: Any) -> set[str]:
    """Return the variables that the templates of a YAML document use and do not set themselves."""
    parse, find = template_environment().parse, jinja2.meta.find_undeclared_variables
    return {name for text in templates(value) for name in find(parse(text))}


def loop_variables(value: Any) -> set[str]:
    """Return the names that loops and `vars` of a YAML document define."""
    if isinstance(value, list):
        return {name for inner in value for name in loop_variables(inner)}
    if not isinstance(value, dict):
        return set()
    found = (
        {str(value["loop_control"].get("loop_var", "item"))} if isinstance(value.get("loop_control"), dict) else set()
    )
    return found | {name for inner in value.values() for name in loop_variables(inner)}


@pytest.mark.parametrize("tree", ["playbooks", *(f"roles/{role}" for role in ROLES)])
def test_variables_belong_to_a_role_or_are_selectors(tree: str) -> None:
    unknown: dict[str, str] = {}
    for path in sorted((REPO / tree).rglob("*.yml")):
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = variables(value) - loop_variables(value)
        unknown |= {name: path.relative_to(REPO).as_posix() for name in names if not known_name(name)}
    unknown = {name: where for name, where in unknown.items() if name not in OLD_NAMES}
    assert not unknown, f"not a selector and without a role's prefix: {unknown}"


def defined(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (how, name) of each variable that tasks define."""
    if isinstance(value, list):
        for inner in value:
            yield from defined(inner)
    elif isinstance(value, dict):
        if isinstance(value.get("register"), str):
            yield "register", value["register"]
        for key in ("set_fact", "ansible.builtin.set_fact"):
            yield from (("set_fact", str(name)) for name in value.get(key) or {} if name != "cacheable")
        for inner in value.values():
            yield from defined(inner)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_names_its_variables_by_its_prefix(role: str) -> None:
    public, constant, register = prefixes(role)
    wrong = []
    for path in sorted((REPO / "roles" / role / "tasks").rglob("*.yml")):
        for how, name in defined(yaml.safe_load(path.read_text(encoding="utf-8"))):
            allowed = (register,) if how == "register" else (register, "gb10_")
            if not f"{name}_".startswith(allowed):
                wrong.append(f"{path.name}: {how} {name} must begin with {' or '.join(allowed)}")
    assert not wrong, "\n".join(wrong)
    constants: list[str] = []
    for path in sorted((REPO / "roles" / role / "vars").glob("*.yml")):
        constants += yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if role in OLD_CONSTANTS:
        assert any(not name.startswith(constant) for name in constants), f"remove {role} from OLD_CONSTANTS"
    else:
        assert not [name for name in constants if not name.startswith(constant)], f"constants begin with {constant}"
    assert not [name for name in constants if name.startswith(public)], "public variables belong to defaults/"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-e model=x -e json=true", {"model", "json"}),
        ("-e '{\"model_overrides\": {}}'", {"model_overrides"}),
        ("-e model=<name>", {"model"}),
        ("grep -e pattern file", set()),
    ],
)
def test_the_reader_of_command_lines(text: str, expected: set[str]) -> None:
    assert given("x", text).keys() == expected


def test_the_reader_of_templates() -> None:
    value = {"when": ["a is defined", "b"], "msg": "{{ c | default(d.e) }} and {% for f in g %}{{ f }}{% endfor %}"}
    assert variables(value) == {"a", "b", "c", "d", "g"}
    assert loop_variables([{"loop_control": {"loop_var": "h"}}]) == {"h"}
    assert list(defined([{"register": "r", "block": [{"set_fact": {"s": 1}}]}])) == [
        ("register", "r"),
        ("set_fact", "s"),
    ]
