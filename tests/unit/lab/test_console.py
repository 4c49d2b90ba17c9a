# SPDX-License-Identifier: Apache-2.0
"""The console of a node: an answer that was lost on its way is asked for again, never taken for an empty one."""

from __future__ import annotations

from typing import Any

import docker.errors
import pytest

from lab import console
from lab.errors import LabError


class Console:
    """Answers as the engine does: (exit code, (stdout, stderr)), one after the other."""

    name = "lab-gx10-1"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def exec_run(self, command: list[str], **_unused: Any) -> Any:
        assert console.END in command[-1]
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


WHOLE = (0, (f"one\ntwo\n{console.END} 7\n".encode(), None))
HALF = (0, (f"two\n{console.END} 7\n".encode(), None))


def _ask(node: Console) -> str:
    return console.run(node, "echo one; echo two")


@pytest.mark.parametrize("lost", [[], [HALF], [(0, (None, None))], [(0, (b"one\n", None)), (0, (None, b"warning"))]])
def test_a_lost_answer_is_asked_for_again(lost: list[Any]) -> None:
    node = Console(*lost, WHOLE)
    assert _ask(node) == "one\ntwo\n"
    assert node.asked == len(lost) + 1


def test_an_answer_that_is_lost_every_time_is_an_error() -> None:
    with pytest.raises(LabError, match="lab-gx10-1 returned an incomplete answer 5 times"):
        _ask(Console(*[(0, (None, None))] * 9))


def test_a_command_that_fails_is_not_repeated() -> None:
    node = Console((2, (b"", b"no such device\n")), WHOLE)
    with pytest.raises(LabError, match=r"failed \(2\): no such device"):
        _ask(node)
    assert node.asked == 1


def test_a_console_without_power() -> None:
    with pytest.raises(LabError, match="does not answer"):
        _ask(Console(docker.errors.APIError("is not running")))
