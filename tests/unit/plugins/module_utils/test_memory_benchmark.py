# SPDX-License-Identifier: Apache-2.0
"""The published figures hold, and the table that shows them would say so if they did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import memory

LINES = memory.lines()


@pytest.mark.parametrize("line", LINES, ids=[f"{line.point}: {line.what}" for line in LINES])
def test_a_published_figure(line: memory.Line) -> None:
    assert line.holds, line


def test_every_document_is_held_against() -> None:
    assert {"S0", "S1", "S2", "S4", "C", "H", "M", "P", "T", "V"} == {line.source for line in LINES}


def test_a_figure_without_a_bound_has_its_reason() -> None:
    for line in LINES:
        assert line.bound_percent is not None or line.note, line


def broken(tmp_path: Path, **point: Any) -> list[memory.Line]:
    data = yaml.safe_load(memory.POINTS.read_text(encoding="utf-8"))
    first = {"name": "wrong", "source": "S4", "model": "nano", "settings": {"gpu_memory_utilization": 0.2}}
    data["points"] = [{**first, "verdict": "accepted", **point}]
    file = tmp_path / "points.yml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return memory.lines(file)


def test_a_figure_out_of_bounds_breaks(tmp_path: Path) -> None:
    verdict, figure = broken(tmp_path, figures={"kv_pool_gib": [4.5, 3]})
    assert verdict.holds
    assert not figure.holds
    assert figure.deviation_percent == pytest.approx(-5.9, abs=0.1)
    assert "-5.95 %     3 %  BROKEN" in memory.render([figure])
    assert memory.render([figure]).endswith("1 comparisons, 0 for information, 1 broken.")


def test_a_wrong_verdict_or_reason_breaks(tmp_path: Path) -> None:
    assert not broken(tmp_path, verdict="refused")[0].holds
    settings = {"gpu_memory_utilization": 0.1}
    assert broken(tmp_path, settings=settings, verdict="refused", because="Nothing is left")[0].holds
    assert not broken(tmp_path, settings=settings, verdict="refused", because="firm cap")[0].holds


def test_a_figure_where_there_is_none_breaks(tmp_path: Path) -> None:
    settings = {"gpu_memory_utilization": 0.2, "vllm_version": "0.9.2"}
    lines = broken(tmp_path, settings=settings, verdict="refused", figures={"kv_pool_gib": [4.2, 3]})
    assert lines[1].predicted == "nothing"
    assert not lines[1].holds


def test_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert memory.main() == 0
    assert "0 broken." in capsys.readouterr().out
    wrong = broken(tmp_path, verdict="refused")
    monkeypatch.setattr(memory, "lines", lambda: wrong)
    assert memory.main() == 1
    assert "BROKEN" in capsys.readouterr().out
