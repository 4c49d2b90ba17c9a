# SPDX-License-Identifier: Apache-2.0
"""Real runs of small playbooks on this host."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ansible_collections.gb10.cluster.plugins.plugin_utils._screen.state import Event, TaskEvent
from lab.runs import RC_KILLED, REPO, RunResult, count_plays, kill_with_all, run_playbook
from tests.unit.helper import until

# --- Counting plays, reading variables ------------------------------------------------------


def test_count_plays_follows_imports(tmp_path: Path) -> None:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "site.yml").write_text("- hosts: all\n- hosts: b\n  vars: {x: !vault abc}\n")
    (tmp_path / "site.yml").write_text(
        "- ansible.builtin.import_playbook: playbooks/site.yml\n- import_playbook: gb10.cluster.site\n- hosts: c\n"
    )
    assert count_plays(tmp_path / "site.yml", tmp_path) == 5
    assert count_plays("gb10.cluster.site", tmp_path) == 2


def test_count_plays_admits_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("- import_playbook: '{{ which }}.yml'\n")
    assert count_plays(tmp_path / "a.yml", tmp_path) is None
    assert count_plays("other.collection.book", tmp_path) is None


# --- Real runs ------------------------------------------------------------------------------

PLAYBOOK = """\
- name: First play
  hosts: all
  gather_facts: false
  tasks:
    - name: Say what was given
      ansible.builtin.debug:
        msg: "{{ word }}"
    - name: Write a file
      ansible.builtin.copy:
        content: "{{ word }}"
        dest: "{{ target }}/{{ inventory_hostname }}"
        mode: "0644"
    - name: Hide the result
      ansible.builtin.command: "echo {{ secret | default('') }}"
      no_log: true
      changed_when: false
- name: Second play
  hosts: b
  gather_facts: false
  tasks:
    - name: Refuse
      ansible.builtin.fail:
        msg: "b has {{ 3 }} GiB, 5 are needed"
      when: refuse | default(false)
      tags: refuse
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with a playbook and an inventory of two local hosts."""
    (tmp_path / "book.yml").write_text(PLAYBOOK)
    (tmp_path / "hosts.yml").write_text(
        "all:\n  hosts: {a: , b: }\n"
        "  vars: {ansible_connection: local, ansible_python_interpreter: '{{ ansible_playbook_python }}'}\n"
    )
    return tmp_path


def run(here: Path, extravars: Mapping[str, Any] | None = None, **options: Any) -> RunResult:
    given = {"word": "hello", "target": str(here), **(extravars or {})}
    return run_playbook(
        "book.yml", "hosts.yml", given, **{"cwd": here, "runs_dir": here / "runs", "quiet": True, **options}
    )


def test_a_run_answers_questions(here: Path) -> None:
    seen: list[str] = []
    first = run(here, {"secret": "hunter2"}, observer=lambda e: seen.append(str(e["event"])))
    assert first.rc == 0, first.describe()
    assert first.hosts == ["a", "b"]
    assert (first.changed("a"), first.changed("b")) == (1, 1)
    assert first.changed_tasks("a") == ["a: Write a file"]
    assert first.messages("Say what was given", "b") == ["hello"]
    assert "playbook_on_stats" in seen
    with pytest.raises(KeyError, match="gx10-9 took no part in this run; these did: a, b"):
        first.changed("gx10-9")

    second = run(here)
    assert second.changed_tasks() == []
    assert second.ok("b") == 3

    preview = run(here, {"word": "other"}, check=True, diff=True, limit="a", skip_tags="refuse")
    assert preview.changed_tasks() == ["a: Write a file"]
    assert [(d["before"], d["after"]) for d in preview.diffs("a")] == [("hello", "other")]
    assert (here / "a").read_text() == "hello"
    assert preview.hosts == ["a"]


def test_a_run_is_told_in_lines_and_keeps_nothing_secret(here: Path) -> None:
    text = io.StringIO()
    result = run(
        here, {"secret": "hunter2"}, env={"HF_TOKEN": "hunter3"}, quiet=False, console=Console(file=text, width=200)
    )
    assert result.rc == 0, result.describe()
    assert "play 1/2  First play" in text.getvalue()
    assert "changed 2" in text.getvalue()
    assert "a b: hello" in text.getvalue()
    assert "book.yml: done in" in text.getvalue()

    kept = [path for path in (here / "runs").rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["ansible.log", "summary.json"]
    for path in kept:
        assert "hunter" not in path.read_text()
    assert "hunter" not in text.getvalue()
    assert stat.S_IMODE(result.log.stat().st_mode) == 0o600
    summary = json.loads((result.log.parent / "summary.json").read_text())
    assert summary["stats"]["a"]["changed"] == 1
    assert ["a", "Write a file", "changed"] in [task[:3] for task in summary["tasks"]]


def test_what_an_action_prints_while_it_runs_is_shown(here: Path) -> None:
    (here / "action_plugins").mkdir()
    (here / "action_plugins" / "speak.py").write_text(
        "from ansible.plugins.action import ActionBase\n"
        "from ansible.utils.display import Display\n"
        "class ActionModule(ActionBase):\n"
        "    def run(self, tmp=None, task_vars=None):\n"
        "        Display().display('  rank 1 loads weights, 3 of 12')\n"
        "        return {'changed': False}\n"
    )
    (here / "book.yml").write_text("- hosts: a\n  gather_facts: false\n  tasks:\n    - name: Speak\n      speak:\n")
    text = io.StringIO()
    result = run(here, quiet=False, console=Console(file=text, width=200))
    assert result.rc == 0, result.describe()
    assert "rank 1 loads weights, 3 of 12" in text.getvalue()


def test_a_failure_names_host_and_reason(here: Path) -> None:
    result = run(here, {"refuse": True}, tags="refuse")
    assert result.rc == 2
    assert result.failed("b") == 1
    assert result.failed_messages("b") == ["b has 3 GiB, 5 are needed"]
    assert [(e.play, e.task, e.path.rsplit(":")[0]) for e in result.failures()] == [
        ("Second play", "Refuse", str(here / "book.yml"))
    ]
    assert "failed on b: Refuse" in result.describe()
    assert "FAILED!" in result.output()


def test_a_broken_playbook_is_reported_with_ansibles_words(here: Path) -> None:
    (here / "book.yml").write_text("- hosts: all\n  taskz: []\n")
    result = run(here)
    assert result.rc != 0
    assert result.stats == {}
    assert any("taskz" in message for message in result.failed_messages())


def test_host_keys_stay_verified(here: Path) -> None:
    (here / "book.yml").write_text(
        "- hosts: a\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.debug:\n"
        "        msg: \"{{ lookup('ansible.builtin.config', 'HOST_KEY_CHECKING') }}\"\n"
    )
    result = run(here)
    assert [event.result["msg"] for event in result.events] == [True]


def test_an_observer_that_fails_ends_the_run(here: Path) -> None:
    def observe(event: Event) -> None:
        raise ValueError(f"the observer is broken, at {event['event']}")

    with pytest.raises(ValueError, match="the observer is broken"):
        run(here, observer=observe)


def processes_with(word: str) -> list[int]:
    """Return the processes that have a word on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def playbook_processes(here: Path) -> list[int]:
    """Return the ansible-playbook processes, workers included, of the playbook of a test."""
    return processes_with(str(here / "book.yml"))


def sleeper(here: Path) -> None:
    (here / "book.yml").write_text(
        "- hosts: a\n  gather_facts: false\n  tasks:\n"
        "    - name: Sleep\n      ansible.builtin.command: sleep 600\n      changed_when: false\n"
    )


def test_a_run_is_killed_on_request(here: Path) -> None:
    sleeper(here)
    reached: list[TaskEvent | str] = []

    def observe(event: Event) -> None:
        if event["event"] == "runner_on_start":
            reached.append("Sleep")

    start = time.monotonic()
    result = run(here, observer=observe, cancel=lambda: bool(reached))
    assert result.rc == RC_KILLED
    assert time.monotonic() - start < 300
    until(lambda: not playbook_processes(here))


FORKS = """
import os, time
# To copy the page tables of so much memory takes a fork milliseconds: the kill comes in the middle of one.
ballast = bytearray(b"x") * 2**28
while True:
    if not os.fork():
        os.setsid()
        time.sleep(600)
        os._exit(0)
"""


def test_what_starts_processes_all_the_time_is_killed_with_all_of_them(tmp_path: Path) -> None:
    """Each child has a session of its own, as Ansible's workers have, and some begin during the kill."""
    with subprocess.Popen([sys.executable, "-c", FORKS, str(tmp_path)]) as process:
        until(lambda: len(processes_with(str(tmp_path))) > 5)
        kill_with_all(process.pid)
    until(lambda: not processes_with(str(tmp_path)))


def test_a_run_is_killed_at_its_time_limit(here: Path) -> None:
    sleeper(here)
    result = run(here, timeout_s=0.5)
    assert result.rc == RC_KILLED
    assert result.stats == {}


INTERRUPTED = """
import sys
from pathlib import Path
from lab.runs import run_playbook
try:
    run_playbook("book.yml", "hosts.yml", cwd=Path.cwd(), runs_dir=Path("runs"))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("number", "status", "delay_s"), [(signal.SIGINT, 130, 0.0), (signal.SIGINT, 130, 3.0), (signal.SIGTERM, 143, 1.0)]
)
def test_an_interrupted_run_leaves_no_ansible_behind(here: Path, number: int, status: int, delay_s: float) -> None:
    sleeper(here)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=here,
        env={**os.environ, "PYTHONPATH": f"{REPO}:{REPO / '.collections'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    deadline = time.monotonic() + 300
    while not playbook_processes(here) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(delay_s)
    process.send_signal(number)
    output, _nothing = process.communicate(timeout=300)
    assert process.returncode == status, output
    until(lambda: not playbook_processes(here))
