"""Patterns of questions, and helpers that fill them.

QuestionPattern(
    "sums", "sums", ("what is {a} plus {b}?", ...), "{a} plus {b} is {c}.", facts, ("a", "b")
)
"""

from collections.abc import Iterable
from dataclasses import dataclass

from speechgpt_jax.demo_world import words as w

# Seed of the draw of pairs that are compared.
SEED = 7


@dataclass(frozen=True)
class QuestionPattern:
    """One kind of question: wordings and an answer with slots, and facts for the slots.

    Attributes:
      name: unique name.
      topic: topic of its dialogues.
      wordings: questions with slots.
      answer: answer with slots.
      facts: values of the slots: slot -> words.
      combination: slots whose values, in any order, form a combination that can be held out.
      family: patterns of one family hold out the same combinations; "" stands for its name.
    """

    name: str
    topic: str
    wordings: tuple[str, ...]
    answer: str
    facts: list[dict[str, str]]
    combination: tuple[str, ...] = ()
    family: str = ""

    def combination_of(self, fact: dict[str, str]) -> str:
        """ "sums/three + two"; "" if the pattern has no combinations."""
        if not self.combination:
            return ""
        return f"{self.family or self.name}/{' + '.join(sorted(fact[s] for s in self.combination))}"


def number(value: int) -> str:
    """41 -> "forty one"; 0 to 99."""
    if value < 20:
        return w.ONES[value]
    tens, ones = divmod(value, 10)
    return w.TENS[tens - 2] + (f" {w.ONES[ones]}" if ones else "")


def a(noun: str) -> str:
    """apple -> "an apple"."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def rows(slots: str, values: Iterable[tuple[str, ...]]) -> list[dict[str, str]]:
    """rows("x y", [("hot", "cold")]) -> [{"x": "hot", "y": "cold"}]."""
    return [dict(zip(slots.split(), row, strict=True)) for row in values]
