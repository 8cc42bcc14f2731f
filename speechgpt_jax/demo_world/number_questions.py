"""Questions about numbers: sums, counting, comparing."""

import itertools
import random
from collections.abc import Iterator

from speechgpt_jax.demo_world.question_pattern import SEED, QuestionPattern, number, rows


def number_questions() -> Iterator[QuestionPattern]:
    yield QuestionPattern(
        "sums",
        "sums",
        (
            "what is {a} plus {b}?",
            "how much is {a} plus {b}?",
            "please add {a} and {b}.",
            "can you add {a} and {b}?",
            "{a} plus {b} is what number?",
        ),
        "{a} plus {b} is {c}.",
        rows(
            "a b c", ((number(x), number(y), number(x + y)) for x in range(13) for y in range(13))
        ),
        ("a", "b"),
    )
    yield QuestionPattern(
        "differences",
        "sums",
        (
            "what is {a} minus {b}?",
            "how much is {a} minus {b}?",
            "please take {b} from {a}.",
            "{a} minus {b} is what number?",
        ),
        "{a} minus {b} is {c}.",
        rows(
            "a b c",
            ((number(x), number(y), number(x - y)) for x in range(13) for y in range(x + 1)),
        ),
        ("a", "b"),
    )
    yield QuestionPattern(
        "double",
        "sums",
        ("what is the double of {n}?", "how much is two times {n}?", "please double {n}."),
        "the double of {n} is {m}.",
        rows("n m", ((number(v), number(2 * v)) for v in range(1, 31))),
    )
    yield QuestionPattern(
        "even",
        "counting",
        (
            "is {n} odd or even?",
            "is {n} an even or an odd number?",
            "is the number {n} odd or even?",
        ),
        "{n} is an {p} number.",
        rows("n p", ((number(v), ("even", "odd")[v % 2]) for v in range(1, 61))),
    )
    yield from counting_questions()
    yield from comparing_number_questions()


def counting_questions() -> Iterator[QuestionPattern]:
    small = range(1, 21)
    composed = [v for v in range(21, 99) if v % 10]  # Held out in part: a model can learn the rule.
    for where, step in (("after", 1), ("before", -1)):
        for size, values in (("small", small), ("composed", composed)):
            yield QuestionPattern(
                f"{size} number {where}",
                "counting",
                (
                    f"what number comes {where} {{n}}?",
                    f"which number is just {where} {{n}}?",
                    f"i count, what comes {where} {{n}}?",
                    f"please say the number {where} {{n}}.",
                ),
                f"the number {where} {{n}} is {{m}}.",
                rows("n m", ((number(v), number(v + step)) for v in values)),
                ("n",) if size == "composed" else (),
            )


def comparing_number_questions() -> Iterator[QuestionPattern]:
    pairs = list(itertools.combinations(range(1, 60), 2))
    pairs = random.Random(SEED).sample(pairs, 140)
    for i, (name, pick, drop) in enumerate((("bigger", max, min), ("smaller", min, max))):
        asked = (p if (sum(p) + i) % 2 else p[::-1] for p in pairs)
        yield QuestionPattern(
            f"{name} number",
            "comparing numbers",
            (
                f"which number is {name}, {{a}} or {{b}}?",
                f"what is {name}, {{a}} or {{b}}?",
                f"is {{a}} or {{b}} the {name} number?",
            ),
            f"{{x}} is {name} than {{y}}.",
            rows(
                "a b x y",
                (tuple(number(v) for v in (*pair, pick(pair), drop(pair))) for pair in asked),
            ),
            ("a", "b"),
            "number pair",
        )
