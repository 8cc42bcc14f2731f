"""Questions about days, months, seasons and hours."""

from collections.abc import Iterator

from speechgpt_jax.demo_world import words as w
from speechgpt_jax.demo_world.question_pattern import QuestionPattern, number, rows


def neighbour_questions(topic: str, noun: str, ring: tuple[str, ...]) -> Iterator[QuestionPattern]:
    """Questions for the next and previous element of a cycle such as the days of the week."""
    for where, step in (("after", 1), ("before", -1)):
        yield QuestionPattern(
            f"{noun} {where}",
            topic,
            (
                f"what {noun} comes {where} {{x}}?",
                f"which {noun} is just {where} {{x}}?",
                f"please say the {noun} {where} {{x}}.",
                f"what comes {where} {{x}}?",
            ),
            f"{{y}} comes {where} {{x}}.",
            rows("x y", ((x, ring[(i + step) % len(ring)]) for i, x in enumerate(ring))),
        )


def day_questions() -> Iterator[QuestionPattern]:
    yield from neighbour_questions("days", "day", w.DAYS)
    for name, verb, step in (("tomorrow", "is", 1), ("yesterday", "was", -1)):
        yield QuestionPattern(
            name,
            "days",
            (
                f"today is {{x}}, what day {verb} {name}?",
                f"if today is {{x}}, what {verb} {name}?",
                f"what day {verb} {name} if today is {{x}}?",
            ),
            f"today is {{x}}, and {name} {verb} {{y}}.",
            rows("x y", ((x, w.DAYS[(i + step) % 7]) for i, x in enumerate(w.DAYS))),
        )
    yield QuestionPattern(
        "days later",
        "days",
        (
            "what day is {n} days after {x}?",
            "which day comes {n} days after {x}?",
            "please say the day {n} days after {x}.",
        ),
        "{n} days after {x} comes {y}.",
        rows(
            "n x y",
            (
                (number(n), x, w.DAYS[(i + n) % 7])
                for n in range(2, 6)
                for i, x in enumerate(w.DAYS)
            ),
        ),
    )
    yield QuestionPattern(
        "clock",
        "time",
        (
            "it is {t} now, what time is it in {h} hours?",
            "what time is it {h} hours after {t}?",
            "please say the time {h} hours after {t}.",
        ),
        "{h} hours after {t} it is {u}.",
        rows(
            "t h u",
            (
                (number(t), number(h), number((t + h - 1) % 12 + 1))
                for t in range(1, 13)
                for h in range(2, 8)
            ),
        ),
        ("t", "h"),
    )


def month_questions() -> Iterator[QuestionPattern]:
    yield from neighbour_questions("months", "month", w.MONTHS)
    yield from neighbour_questions("seasons", "season", w.SEASONS)
    numbered = rows("m n", ((m, number(i + 1)) for i, m in enumerate(w.MONTHS)))
    yield QuestionPattern(
        "month number",
        "months",
        ("what number is {m}?", "what is the number of {m}?", "what number does {m} have?"),
        "{m} is month number {n}.",
        numbered,
    )
    yield QuestionPattern(
        "number month",
        "months",
        ("which month is number {n}?", "what is month number {n}?", "please say month number {n}."),
        "month number {n} is {m}.",
        numbered,
    )
    yield QuestionPattern(
        "month season",
        "seasons",
        ("what season is {m} in?", "which season has {m} in it?", "{m} is in what season?"),
        "{m} is in the {s}.",
        rows("m s", ((m, w.SEASONS[((i + 10) % 12) // 3]) for i, m in enumerate(w.MONTHS))),
    )
    yield QuestionPattern(
        "weather season",
        "seasons",
        ("how is the weather in the {s}?", "what is the {s} like?", "how is it in the {s}?"),
        "in the {s} it is {x}.",
        rows(
            "s x", zip(w.SEASONS, ("warm and rainy", "hot and sunny", "windy and cloudy", "cold"))
        ),
    )
