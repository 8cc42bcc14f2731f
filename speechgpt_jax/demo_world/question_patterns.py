"""All patterns of the demo world's questions; those of animals, things, people and countries.

`speechgpt_jax.demo_world.world` makes dialogues from them and splits these into train and test.
"""

import itertools
import random
from collections.abc import Iterator
from functools import cache

from speechgpt_jax.demo_world import words as w
from speechgpt_jax.demo_world.calendar_questions import day_questions, month_questions
from speechgpt_jax.demo_world.number_questions import number_questions
from speechgpt_jax.demo_world.question_pattern import SEED, QuestionPattern, a, number, rows


def animal_questions() -> Iterator[QuestionPattern]:
    simple = (
        ("sound", w.ANIMAL_SOUNDS, "{x} can {y}.",
         ("what can {x} say?", "what sound does {x} make?", "how does {x} sound?")),
        ("legs", w.LEGS, "{x} has {y} legs.",
         ("how many legs does {x} have?", "how many legs has {x}?",
          "please count the legs of {x}.")),
        ("home", w.HOMES, "{x} lives {y}.",
         ("where does {x} live?", "where is the home of {x}?", "where can i see {x}?")),
        ("animal food", w.EATS, "{x} eats {y}.",
         ("what does {x} eat?", "what is the food of {x}?", "what can i give {x} as food?")),
    )  # fmt: skip
    for name, table, answer, wordings in simple:
        facts = rows("x y", ((a(x), y) for x, y in table.items()))
        yield QuestionPattern(name, "animals", wordings, answer, facts)
    yield QuestionPattern(
        "young",
        "animals",
        (
            "what is a young {x}?",
            "what do we call a young {x}?",
            "what is the name of a young {x}?",
        ),
        "a young {x} is a {y}.",
        rows("x y", w.YOUNG.items()),
    )
    for able, table, answer in (
        ("able", w.ABLE, "yes, {x} can {y}."),
        ("unable", w.UNABLE, "no, {x} can not {y}."),
    ):
        yield QuestionPattern(
            able,
            "animals",
            ("can {x} {y}?", "do you think {x} can {y}?", "is it true that {x} can {y}?"),
            answer,
            rows("x y", ((a(x), y) for y, animals in table.items() for x in animals)),
        )
    yield from animal_size_questions()


def animal_size_questions() -> Iterator[QuestionPattern]:
    ranks = {a(x): i for i, x in enumerate(w.ANIMALS)}
    rank = ranks.__getitem__
    pairs = [(x, y) for x, y in itertools.permutations(ranks, 2) if abs(ranks[x] - ranks[y]) > 2]
    random.Random(SEED).shuffle(pairs)
    half = len(pairs) // 2
    for name, asked, pick, drop in (
        ("bigger", pairs[:half], max, min),
        ("smaller", pairs[half:], min, max),
    ):
        yield QuestionPattern(
            f"{name} animal",
            "comparing animals",
            (
                f"which is {name}, {{a}} or {{b}}?",
                f"which animal is {name}, {{a}} or {{b}}?",
                f"is {{a}} or {{b}} the {name} animal?",
            ),
            f"{{x}} is {name} than {{y}}.",
            rows("a b x y", ((*p, pick(p, key=rank), drop(p, key=rank)) for p in asked)),
            ("a", "b"),
            "animal pair",
        )


def color_questions() -> Iterator[QuestionPattern]:
    yield QuestionPattern(
        "color",
        "colors",
        ("what color is {x}?", "what is the color of {x}?", "which color does {x} have?"),
        "{x} is {c}.",
        rows("x c", w.THING_COLORS.items()),
    )
    choices = [
        (x, *((c, other) if i % 2 else (other, c)), c)
        for x, c in w.THING_COLORS.items()
        for i, other in enumerate(w.COLORS)
        if other != c
    ]
    yield QuestionPattern(
        "color choice",
        "colors",
        ("is {x} {a} or {b}?", "is the color of {x} {a} or {b}?", "{a} or {b}, what color is {x}?"),
        "{x} is {c}.",
        rows("x a b c", choices),
        ("x", "a", "b"),
    )


def given_questions() -> Iterator[QuestionPattern]:
    """Questions that contain their answer, which needs only recognition and memory."""
    yield QuestionPattern(
        "my color",
        "my things",
        (
            "my {x} is {c}, what color is my {x}?",
            "i have a {c} {x}, what color is it?",
            "what color is my {x} if it is {c}?",
        ),
        "your {x} is {c}.",
        rows("x c", itertools.product(w.THINGS, w.COLORS)),
        ("x", "c"),
    )
    yield QuestionPattern(
        "my count",
        "my things",
        (
            "i have {n} {x}, how many {x} do i have?",
            "there are {n} {x} here, how many {x} do i have?",
            "i have {n} {x}, how many is that?",
        ),
        "you have {n} {x}.",
        rows("n x", itertools.product(map(number, range(2, 13)), w.COUNTED)),
        ("n", "x"),
    )
    yield QuestionPattern(
        "my friend",
        "people",
        (
            "i am {x} and my friend is {y}, who is my friend?",
            "my name is {x} and my friend is {y}, who is my friend?",
            "i am {x} and {y} is my friend, who is my friend?",
        ),
        "hello {x}, your friend is {y}.",
        rows("x y", itertools.permutations(w.NAMES, 2)),
        ("x", "y"),
    )
    yield QuestionPattern(
        "my name",
        "people",
        ("my name is {x}, what is my name?", "i am {x}, who am i?", "hello, i am {x}, who am i?"),
        "your name is {x}.",
        rows("x", ((x,) for x in w.NAMES)),
    )
    yield QuestionPattern(
        "city weather",
        "weather",
        (
            "it is {x} in {c}, how is the weather in {c}?",
            "they say it is {x} in {c}, how is the weather there?",
            "how is the weather in {c} if it is {x}?",
        ),
        "the weather in {c} is {x}.",
        rows("x c", itertools.product(w.WEATHERS, w.CAPITALS.values())),
        ("x", "c"),
    )


def opposite_questions() -> Iterator[QuestionPattern]:
    couples = [tuple(couple.split()) for couple in w.OPPOSITES]
    couples += [couple[::-1] for couple in couples]
    yield QuestionPattern(
        "opposite",
        "opposites",
        (
            "what is the opposite of {a}?",
            "please say the opposite of {a}.",
            "{a} is the opposite of what?",
        ),
        "the opposite of {a} is {b}.",
        rows("a b", couples),
    )
    ask = (
        "is {a} the opposite of {b}?",
        "do you think {a} is the opposite of {b}?",
        "is it true that {a} is the opposite of {b}?",
    )
    yield QuestionPattern(
        "yes opposite",
        "opposites",
        ask,
        "yes, {a} is the opposite of {b}.",
        rows("a b", couples[: len(w.OPPOSITES)]),
    )
    # Both words of a wrong pair occur in a right one.
    strangers = [(x, couples[(i + 5) % len(couples)][1]) for i, (x, _) in enumerate(couples)]
    yield QuestionPattern(
        "no opposite",
        "opposites",
        ask,
        "no, {a} is not the opposite of {b}.",
        rows("a b", strangers),
        ("a", "b"),
    )


def country_questions() -> Iterator[QuestionPattern]:
    yield QuestionPattern(
        "capital",
        "capitals",
        (
            "what is the capital of {x}?",
            "which city is the capital of {x}?",
            "please name the capital of {x}.",
            "{x} has what capital?",
        ),
        "the capital of {x} is {y}.",
        rows("x y", w.CAPITALS.items()),
    )
    yield QuestionPattern(
        "country",
        "capitals",
        ("where is {y}?", "in which country is {y}?", "{y} is the capital of which country?"),
        "{y} is the capital of {x}.",
        rows("x y", w.CAPITALS.items()),
    )
    countries = list(w.CAPITALS)
    wrong = [
        (x, w.CAPITALS[countries[(i + step) % len(countries)]], w.CAPITALS[x])
        for step in (1, 3, 6, 8)
        for i, x in enumerate(countries)
    ]
    yield QuestionPattern(
        "wrong capital",
        "capitals",
        (
            "is {y} the capital of {x}?",
            "do you think {y} is the capital of {x}?",
            "is it true that {y} is the capital of {x}?",
        ),
        "no, the capital of {x} is {z}.",
        rows("x y z", wrong),
        ("x", "y"),
    )


def thing_questions() -> Iterator[QuestionPattern]:
    simple = (
        ("need", "weather", w.NEEDS, "you need {y} when it is {x}.",
         ("it is {x}, what do i need?", "what do i need when it is {x}?",
          "it is {x} today, what can i take with me?")),
        ("use", "tools", w.TOOLS, "you can {y} with {x}.",
         ("what can i do with {x}?", "how do i use {x}?", "i have {x}, what can i do with it?")),
        ("tool", "tools", w.TOOLS, "take {x} if you must {y}.",
         ("i must {y}, what do i need?", "what do i need if i must {y}?",
          "what can i use if i must {y}?")),
        ("body", "body", w.BODY, "we {x} with the {y}.",
         ("what do we {x} with?", "with what do we {x}?", "how do we {x}?")),
        ("body use", "body", w.BODY, "with the {y} we {x}.",
         ("what do we do with the {y}?", "what can we do with the {y}?", "how do we use the {y}?")),
        ("taste", "food", w.TASTES, "{x} tastes {y}.",
         ("how does {x} taste?", "what does {x} taste like?", "what is the taste of {x}?")),
        ("food kind", "food", w.FOOD_KINDS, "{x} is {y}.",
         ("what is {x}?", "is {x} a fruit, a vegetable or a drink?", "what kind of food is {x}?")),
        ("meal", "food", dict.fromkeys(w.FOODS, "eat") | dict.fromkeys(w.DRINKS, "drink"),
         "we {y} {x}.",
         ("do we eat or drink {x}?", "do you eat {x} or do you drink it?",
          "what do we do with {x}?")),
        ("sides", "shapes", w.SIDES, "a {x} has {y} sides.",
         ("how many sides does a {x} have?", "how many sides has a {x}?",
          "please count the sides of a {x}.")),
        ("shape", "shapes", w.SHAPES, "{x} is {y}.",
         ("what shape is {x}?", "what is the shape of {x}?", "which shape does {x} have?")),
    )  # fmt: skip
    for name, topic, table, answer, wordings in simple:
        yield QuestionPattern(name, topic, wordings, answer, rows("x y", table.items()))
    yield QuestionPattern(
        "relative",
        "family",
        ("who is {r} my {x}?", "what do i call {r} my {x}?", "please name {r} my {x}."),
        "{r} your {x} is your {y}.",
        rows("r x y", ((r, x, y) for r, table in w.FAMILY.items() for x, y in table.items())),
    )
    for i, (wordings, answer) in enumerate(w.SMALL_TALK):
        yield QuestionPattern(f"small talk {i}", "small talk", wordings, answer, [{}])


@cache
def question_patterns() -> tuple[QuestionPattern, ...]:
    """All patterns, in a fixed order."""
    makers = (
        number_questions,
        day_questions,
        month_questions,
        animal_questions,
        color_questions,
        given_questions,
        opposite_questions,
        country_questions,
        thing_questions,
    )
    return tuple(itertools.chain.from_iterable(make() for make in makers))
