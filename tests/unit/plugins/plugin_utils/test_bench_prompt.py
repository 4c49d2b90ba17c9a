# SPDX-License-Identifier: Apache-2.0
"""Prompts of exact length, whatever the tokenizer, and the judgement on a needle."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from ansible_collections.gb10.cluster.plugins.plugin_utils._bench.prompt import (
    FACT,
    QUESTION,
    Fitted,
    PromptError,
    before_needle,
    filler,
    fit,
    haystack,
    judge_needle,
    needle_code,
    story,
)

Count = Callable[[str], int]

#: How real tokenizers differ: bytes; words with a leading space; digits alone; merges of several characters; pairs.
TOKENIZERS: dict[str, Count] = {
    "bytes": lambda text: 12 + len(text.encode()),
    "words": lambda text: 5 + len(re.findall(r"\s?\w+|[^\w\s]|\s", text)),
    "digits": lambda text: 3 + len(re.findall(r"\d|\s?[^\W\d]+|[^\w\s]|\s+", text)),
    "long words in parts": lambda text: sum(math.ceil(len(word) / 4) for word in re.findall(r" ?\w+|[^\w ]+", text)),
    "pairs": lambda text: sum(math.ceil(len(run.group()) / 2) for run in re.finditer(r"(.)\1*|\n+", text)),
}


def run(target: int, build: Callable[[int, str], str], count: Count, **options: float) -> tuple[Fitted, int]:
    """Return what was found, and how often the server was asked."""
    asked = 0
    search = fit(target, build, **options)  # type: ignore[arg-type]
    text = next(search)
    while True:
        asked += 1
        try:
            text = search.send(count(text))
        except StopIteration as found:
            return found.value, asked


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("target", [100, 512, 1000, 10000, 10006])
def test_a_prompt_has_exactly_the_asked_length(name: str, target: int) -> None:
    count = TOKENIZERS[name]
    if count(story("seed")(0, "")) > target:
        pytest.fail(f"{name} needs a larger target than {target}")
    found, asked = run(target, story(f"Account {name}"), count)

    assert found.tokens == target
    assert count(found.text) == target
    assert found.text.startswith(f"Account {name}: ")
    assert asked <= 40


def test_a_long_haystack_is_exact_and_cheap() -> None:
    code = needle_code("x")
    found, asked = run(200_000, haystack("Ledger", code, 0.5), TOKENIZERS["words"])

    assert TOKENIZERS["words"](found.text) == 200_000
    assert asked < 20
    assert found.text.count(code) == 1
    assert found.text.endswith(QUESTION)


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 1.0])
def test_the_needle_is_at_its_depth(depth: float) -> None:
    count = TOKENIZERS["words"]
    found, _asked = run(5000, haystack("Ledger", "A-B-1234", depth), count)

    assert count(before_needle(found.text, "A-B-1234")) / 5000 == pytest.approx(depth, abs=0.02)
    assert FACT.format(code="A-B-1234") in found.text


def test_a_tolerance_saves_questions() -> None:
    exact, many = run(3000, story("s"), TOKENIZERS["bytes"])
    near, few = run(3000, story("s"), TOKENIZERS["bytes"], tolerance=60)

    assert exact.tokens == 3000
    assert 2940 <= near.tokens <= 3000
    assert few < many


def test_prompts_differ_from_their_first_words_on() -> None:
    one, two = story("Account 1")(50, ""), story("Account 2")(50, "")
    assert one.partition(":")[0] != two.partition(":")[0]
    assert one != two


def test_the_same_seed_gives_the_same_words_and_a_longer_text_begins_with_the_shorter() -> None:
    assert filler("a", 100) == filler("a", 200)[:100]
    assert filler("a", 100) != filler("b", 100)
    build = story("a")
    short = build(40, "").partition("\n\n")[0]
    build(4000, "")
    assert build(40, "").partition("\n\n")[0] == short


def test_less_than_the_question_is_refused_with_the_least_possible() -> None:
    with pytest.raises(
        PromptError, match=r"A prompt of 20 tokens cannot be made.*alone have \d+\. Ask for \d+ or more"
    ):
        run(20, story("s"), TOKENIZERS["bytes"])


def test_a_length_that_no_text_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(PromptError, match=r"No prompt of exactly 1001 tokens was found; the nearest has 100[02]"):
        run(1001, story("s"), lambda text: 2 * len(text.split()))


def test_a_depth_outside_the_text_is_refused() -> None:
    with pytest.raises(PromptError, match=r"between 0 \(at the beginning\) and 1 \(at the end\), not 1.5"):
        haystack("s", "c", 1.5)


def test_codes_are_repeatable_and_differ() -> None:
    assert needle_code("a") == needle_code("a")
    assert len({needle_code(str(number)) for number in range(50)}) > 45
    assert re.fullmatch(r"[A-Z]+-[A-Z]+-\d{4}", needle_code("a"))


@pytest.mark.parametrize(
    ("reasoning", "content", "finish", "verdict", "words"),
    [
        ("It says X-Y-1.", "X-Y-1", "stop", "exact", "exactly"),
        ("", "\n X-Y-1 \n", "stop", "exact", "exactly"),
        ("", "The phrase is X-Y-1.", "stop", "contained", "among other words"),
        ("So X-Y-1", "", "length", "reasoning", "raise bench_needle_output_tokens"),
        ("So X-Y-1", "I do not know", "stop", "reasoning", "in the reasoning alone"),
        ("", "X-Y-2", "stop", "absent", "was not given"),
        ("", "x-y-1", "stop", "absent", "was not given"),
    ],
)
def test_the_judgement(reasoning: str, content: str, finish: str, verdict: str, words: str) -> None:
    found, sentence = judge_needle("X-Y-1", reasoning, content, finish)
    assert (found, words in sentence) == (verdict, True), sentence
