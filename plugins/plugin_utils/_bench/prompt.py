# SPDX-License-Identifier: Apache-2.0
"""Prompts of an exact number of tokens, and the needle in one of them; pure.

Only the server knows its tokenizer and its chat template. So `fit` is a conversation: it yields a text and is sent the
number of tokens that the server counts in it (/tokenize), until the number is the wanted one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass

_NAMES = (
    "baker captain clerk cousin doctor farmer gardener joiner miller painter pilot sailor smith tailor teacher weaver"
)
_THINGS = (
    "barrel basket bridge candle carpet chimney compass curtain drawer engine garden hammer harbour kettle ladder "
    "lantern ledger letter mirror orchard paddle parcel pillow quarry ribbon saddle shelf spade station stove table "
    "ticket valley wagon wheel window"
)
_DEEDS = (
    "borrowed brought carried cleaned counted described found gathered kept left lifted measured mended moved noticed "
    "ordered packed painted placed repaired returned sold studied weighed wrapped"
)
_KINDS = (
    "broken brown careful cheap cold dark dusty early empty faded grey heavy late light long narrow new old plain "
    "quiet round short small soft strong tall warm wet white wide"
)
_PLACES = "behind beside beyond inside near outside past under"
NAMES, THINGS, DEEDS, KINDS, PLACES = (words.split() for words in (_NAMES, _THINGS, _DEEDS, _KINDS, _PLACES))

#: Appended to reach the last tokens: one of them makes single steps in any tokenizer, be it of bytes or of words.
TAIL_PIECES = (" a", "a", " 1", "1", "\n", ".", " .", "é")
WORDS_PER_TOKEN_GUESS = 0.8
SEARCH_STEPS = 40
#: So many tokens short of the target the search by words ends and the one by pieces begins.
NEAR_TOKENS = 12

CONTINUE = "Continue the account above in the same manner, and do not stop early."
QUESTION = "What is the pass phrase of the lighthouse in the text above? Answer with the pass phrase alone."
FACT = "Note for later: the pass phrase of the lighthouse is {code}."


class PromptError(ValueError):
    """No prompt can have the wanted length; the message has the reason."""


@dataclass(frozen=True)
class Fitted:
    """A prompt and the number of tokens that the server counts in it."""

    text: str
    tokens: int
    words: int


def filler(seed: str, words: int) -> list[str]:
    """Return this many words of varied English sentences, the same for the same seed."""
    source = random.Random(seed)
    found: list[str] = []
    while len(found) < words:
        sentence = ["The", *map(source.choice, (KINDS, NAMES, DEEDS)), "the", source.choice(THINGS)]
        if source.random() < 0.5:
            sentence += [source.choice(PLACES), "the", source.choice(KINDS), source.choice(THINGS)]
        sentence[-1] += "."
        found += sentence
    return found[:words]


def _growing(seed: str) -> Callable[[int], list[str]]:
    """Return what gives the first words of a seed's filler, of which no more is made than is asked for."""
    known: list[str] = []

    def first(words: int) -> list[str]:
        nonlocal known
        if len(known) < words:
            # A longer text of the same seed begins with the shorter one, as the generator is asked anew.
            known = filler(seed, max(words, 2 * len(known)))
        return known[:words]

    return first


def story(seed: str, question: str = CONTINUE) -> Callable[[int, str], str]:
    """Return what builds a prompt: (words, tail) → text. The seed stands first: no two prompts share a beginning."""
    first = _growing(seed)
    return lambda words, tail: f"{seed}: {' '.join(first(words))}{tail}\n\n{question}"


def haystack(seed: str, code: str, depth: float) -> Callable[[int, str], str]:
    """Return what builds a prompt with the fact at a depth from 0 (first) to 1 (last), and the question at the end."""
    if not 0 <= depth <= 1:
        raise PromptError(f"A needle's depth is between 0 (at the beginning) and 1 (at the end), not {depth}.")
    first = _growing(seed)

    def build(words: int, tail: str) -> str:
        parts = first(words)
        parts.insert(round(words * depth), FACT.format(code=code))
        return f"{seed}: {' '.join(parts)}{tail}\n\n{QUESTION}"

    return build


def before_needle(text: str, code: str) -> str:
    """Return what stands before the needle."""
    return text[: text.index(FACT.format(code=code))]


def needle_code(seed: str) -> str:
    """Return a pass phrase that no model can know: two words and four digits, the same for the same seed."""
    source = random.Random(f"needle {seed}")
    return f"{source.choice(KINDS)}-{source.choice(THINGS)}-{source.randrange(1000, 10000)}".upper()


def judge_needle(
    code: str, reasoning: str, content: str, finish: str, setting: str = "bench_needle_output_tokens"
) -> tuple[str, str]:
    """Return the verdict on an answer and a sentence.

    ``exact``: the content is the code and nothing else (white space around it aside). ``contained``: the content holds
    it among other words. ``reasoning``: only the reasoning holds it. ``absent``: nothing does.
    """
    if content.strip() == code:
        return "exact", "the answer is the pass phrase, exactly"
    cut = f" before max_tokens ended the answer: raise {setting}" if finish == "length" else ""
    if code in content:
        return "contained", "the answer holds the pass phrase among other words"
    if code in reasoning:
        return "reasoning", f"the pass phrase stands in the reasoning alone{cut}"
    return "absent", f"the pass phrase was not given{cut}"


def fit(
    target: int, build: Callable[[int, str], str], *, words_per_token: float = WORDS_PER_TOKEN_GUESS, tolerance: int = 0
) -> Generator[str, int, Fitted]:
    """Find a prompt of exactly ``target`` tokens (or at most ``tolerance`` fewer); see the module's text.

    Raises:
        PromptError: the question alone is longer, or no text of that length was found.
    """
    text = build(0, "")
    count = yield text
    if count > target:
        raise PromptError(
            f"A prompt of {target} tokens cannot be made: the question and the chat template alone have {count}. "
            f"Ask for {count} or more."
        )
    low = Fitted(text, count, 0)
    high: Fitted | None = None
    guess = max(1, round((target - count) * words_per_token))
    for _step in range(SEARCH_STEPS):
        if target - low.tokens <= max(tolerance, NEAR_TOKENS) or (high is not None and high.words <= low.words + 1):
            break
        text = build(guess, "")
        found = Fitted(text, (yield text), guess)
        if found.tokens <= target:
            low = max(low, found, key=lambda each: each.words)
        else:
            high = found if high is None else min(high, found, key=lambda each: each.words)
        per_word = max(0.05, (found.tokens - count) / max(1, guess))
        guess = low.words + max(1, int((target - low.tokens) / per_word))
        if high is not None:
            guess = min(guess, high.words - 1)
        guess = max(guess, low.words + 1)
    if target - low.tokens <= tolerance:
        return low
    return (yield from _finish(target, build, low, tolerance))


def _finish(target: int, build: Callable[[int, str], str], low: Fitted, tolerance: int) -> Generator[str, int, Fitted]:
    """Append pieces for the last few tokens; take words away where none of them lands exactly."""
    nearest = low.tokens
    for fewer in range(min(low.words, 8) + 1):
        words = low.words - fewer
        base = build(words, "")
        count = low.tokens if fewer == 0 else (yield base)
        for piece in TAIL_PIECES:
            repeats, tried = target - count, set[int]()
            while 0 < repeats <= 4 * NEAR_TOKENS + 64 and repeats not in tried and len(tried) < 4:
                tried.add(repeats)
                text = build(words, piece * repeats)
                found = yield text
                nearest = min(nearest, found, key=lambda each: abs(target - each))
                if 0 <= target - found <= tolerance:
                    return Fitted(text, found, words)
                repeats += target - found
    raise PromptError(
        f"No prompt of exactly {target} tokens was found; the nearest has {nearest}. Ask for that, or another number."
    )
