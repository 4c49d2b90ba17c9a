# SPDX-License-Identifier: Apache-2.0
"""What the swap benchmark reads from the output of other programs, and what it refuses to measure."""

from __future__ import annotations

import time

import pytest

from benchmarks import swap

RECAP = """PLAY RECAP ****
gx10-1                     : ok=52   changed=0    unreachable=0    failed=0    skipped=12   rescued=0    ignored=0
gx10-2                     : ok=30   changed=2    unreachable=0    failed=0    skipped=20   rescued=0    ignored=0
"""
JOURNAL = """1795263226.100001 gx10-1 python3[7]: gb10: vllm-m starts as rank 0 on eth1
1795263226.500000 gx10-1 docker[7]: gb10: exec vllm
1795263286.250000 gx10-1 docker[9]: gb10: exec vllm
1795263290.000000 gx10-1 docker[9]: INFO something
1795263299.000000 gx10-1 sudo[10]: ansible : COMMAND=/bin/sh -c journalctl | grep 'gb10: exec '
1795263299.100000 gx10-1 ansible-ansible.legacy.command[11]: Invoked with _raw_params=grep 'gb10: exec '
"""


def test_hosts_that_changed_are_found_in_the_recap() -> None:
    assert swap.changed_hosts(RECAP) == ["gx10-2"]
    assert swap.changed_hosts(RECAP.replace("changed=2", "changed=0")) == []


def test_the_newest_start_of_an_engine_counts() -> None:
    assert swap.last_start(JOURNAL) == 1795263286.25
    assert swap.last_start("1795263226.1 gx10-1 x: nothing\n") is None


def test_the_clocks_are_taken_at_the_middle_of_the_question() -> None:
    assert swap.node_clocks(100.0, 102.0, {"a": 101.0, "b": 104.5}) == {"a": 0.0, "b": 3.5}


def test_what_each_node_printed() -> None:
    said = "gx10-1 | CHANGED | rc=0 | (stdout) 1.5\ngx10-2 | CHANGED | rc=0 | (stdout) a\\nb (stderr) warning\n"
    assert swap.by_node(said) == {"gx10-1": "1.5", "gx10-2": "a\nb"}


class Fake(swap.Site):
    """A site that answers at once."""

    starts = True

    def __init__(self, recap: str) -> None:
        super().__init__(["inv"], "gx10")
        self.recap, self.ran, self.begun = recap, list[str](), 0.0

    def playbook(self, command: str) -> tuple[float, str]:
        self.ran.append(command)
        if command == "swap":
            time.sleep(0.02)
            self.begun = time.time()
            time.sleep(0.02)
        return 4.0, self.recap

    def ping(self) -> float:
        return 2.0

    def clocks(self) -> dict[str, float]:
        return {"gx10-1": 0.0}

    def shell(self, script: str) -> dict[str, str]:
        started = f"{self.begun:.6f} gx10-1 docker[1]: gb10: exec vllm" if self.starts else ""
        return {"gx10-1": started, "gx10-2": "1.5 gx10-2 sudo[1]: asked for gb10: exec by grep"}


def test_a_run_that_changes_something_is_no_measure_of_one_that_does_not() -> None:
    with pytest.raises(swap.BenchError, match=r"`site\.yml` changed gx10-2: this site was not converged"):
        swap.measure(Fake(RECAP), "site.yml", "swap", "back")


def test_the_figures_are_those_of_one_run_and_the_model_before_is_served_again() -> None:
    site = Fake(RECAP.replace("changed=2", "changed=0"))
    figures = swap.measure(site, "site.yml", "swap", "back")
    assert site.ran == ["site.yml", "swap", "back"]
    assert figures["unchanged_in_ping_rounds"] == 2.0
    assert 0.02 <= figures["ours_until_engine_starts_s"] < figures["swap_s"]
    assert figures["engine_start_and_proof_s"] >= 0.02
    assert "2.0 ping rounds" in swap.render(figures)


def test_a_swap_that_started_no_engine_in_its_time_is_no_measure() -> None:
    site = Fake(RECAP.replace("changed=2", "changed=0"))
    site.begun = 1.0
    with pytest.raises(swap.BenchError, match="before the swap or after it"):
        swap.measure(site, "site.yml", "no swap", "back")


def test_a_swap_that_started_nothing_is_no_measure() -> None:
    site = Fake(RECAP.replace("changed=2", "changed=0"))
    site.starts = False
    with pytest.raises(swap.BenchError, match="the swap started none"):
        swap.measure(site, "site.yml", "swap", "back")


def test_a_command_that_fails_ends_the_measurement_with_its_words() -> None:
    with pytest.raises(swap.BenchError, match=r"(?s)ended with 3:\nno luck"):
        swap.run(["sh", "-c", "echo no luck; exit 3"])


def test_a_swap_to_nowhere_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        swap.main([])
    assert "name the model to swap to with --to" in capsys.readouterr().err
