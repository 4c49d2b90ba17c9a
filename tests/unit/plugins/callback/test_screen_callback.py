# SPDX-License-Identifier: Apache-2.0
"""The callback gb10.cluster.screen in real runs of ansible-playbook on this host."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[4]
PLAYBOOK = """\
- name: First play
  hosts: all
  gather_facts: false
  tasks:
    - name: Say a word
      ansible.builtin.debug:
        msg: hello
    - name: Show a variable
      ansible.builtin.debug:
        var: inventory_hostname
    - name: Say each item
      ansible.builtin.debug:
        msg: "item {{ item }}"
      loop: [one]
    - name: Write a file
      ansible.builtin.copy:
        content: "new\\n"
        dest: "{{ playbook_dir }}/{{ inventory_hostname }}.txt"
        mode: "0644"
    - name: Hide the result
      ansible.builtin.command: echo hunter2
      no_log: true
      changed_when: false
- name: Second play
  hosts: all
  gather_facts: false
  tasks:
    - name: Wait a moment
      ansible.builtin.command: sleep 3
      changed_when: false
    - name: Skip it everywhere
      ansible.builtin.debug:
        msg: never
      when: false
    - name: Check the space
      ansible.builtin.fail:
        msg: "3 GiB are free, 5 are needed"
      when: inventory_hostname == 'b'
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


def command(here: Path, *words: str) -> list[str]:
    program = Path(sys.executable).with_name("ansible-playbook")
    return [str(program), "-i", str(here / "hosts.yml"), str(here / "book.yml"), *words]


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "gb10.cluster.screen",
        "GB10_SCREEN_HEARTBEAT_SECONDS": "1",
        **more,
    }


def run(here: Path, *words: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        command(here, *words), env=environment(**more), cwd=REPO, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_lines_where_there_is_no_terminal(here: Path) -> None:
    rc, text = run(here, "--diff", ANSIBLE_LOG_PATH=str(here / "log.txt"))
    assert rc == 2, text
    assert "play 1/2  First play" in text
    assert "a b: hello" in text
    assert "inventory_hostname: b" in text
    assert "item one" in text
    assert "+new" in text
    assert "changed 2" in text
    assert re.search(r"\.\.\. Wait a moment: \d+ s so far, waiting for ", text)
    assert "Skip it everywhere" not in text
    assert "FAILED on b: Check the space" in text
    assert "3 GiB are free, 5 are needed" in text
    assert text.splitlines()[-1].startswith("book.yml: FAILED with exit status 2 in ")
    assert "b ok 6 changed 1 failed 1" in text.splitlines()[-1]
    assert "hunter2" not in text
    assert "3 GiB are free" in (here / "log.txt").read_text()


def test_verbose_shows_results_but_no_secret(here: Path) -> None:
    rc, text = run(here, "-v", "-l", "a")
    assert rc == 0, text
    assert str(here / "a.txt") in text
    assert "hunter2" not in text
    assert text.splitlines()[-1].startswith("book.yml: done in ")


def test_one_screen_on_a_terminal(here: Path) -> None:
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        command(here),
        env=environment(TERM="xterm", COLUMNS="100", LINES="30", ANSIBLE_LOG_PATH=str(here / "log.txt")),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=REPO,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        text += part
    os.close(mine)
    shown = text.decode(errors="replace")
    assert process.wait() == 2, shown
    assert "book.yml   play 2 of 2: Second play" in shown
    assert "running" in shown
    assert "3 GiB are free, 5 are needed" in shown
    assert shown.rstrip().endswith("b ok 6 changed 1 failed 1")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"
    assert "Check the space" in (here / "log.txt").read_text()


def test_a_playbook_that_ansible_gives_up_is_no_success(here: Path) -> None:
    (here / "book.yml").write_text("- hosts: all\n  tasks:\n    - nonexistent.module.name:\n")
    rc, text = run(here)
    assert rc != 0
    assert "nonexistent.module.name" in text
