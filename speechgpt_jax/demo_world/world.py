"""Texts of the shipped corpus: everyday talk about a small world.

The vocabulary has some 450 words, so that a model of a few million parameters learns to recognise
them in minutes. Texts are in lower case, with numbers as words, American spelling (that of the
recognisers of the evaluation) and no apostrophes. Of words that sound the same only one is used (no
"to", no "for"), since nothing would distinguish them in free word order; the exceptions are "hear"
and "here".

Questions come from `question_patterns`, with several wordings per fact:

    Dialogue("sums", "what is two plus three?", "two plus three is five.", "train", ...)

Questions are held out for `test` in two ways, named in `Dialogue.held_out`:

- `combination`: the fact's combination ("three + two", in either order) doesn't occur in training,
  in any wording or pattern of the same family; a model has to generalise over the parts.
- `wording`: fact and wording both occur in training, but not together (a held-out wording of a
  greeting doesn't occur at all). Facts without combinations (capitals, animal sounds) are held out
  only in this way.

Plain sentences for ASR and TTS follow patterns (some pairs of fillers are held out) or are in free
word order: the vocabulary is shuffled repeatedly and cut into strings of 4 to 9 words, so that all
words are equally frequent and have random neighbours. Without them a model would guess words from
the sentence instead of recognising them.

    python -m speechgpt_jax.demo_world.world  # prints counts, vocabulary size, words by topic
"""

import itertools
import random
import re
from dataclasses import dataclass
from functools import cache

from speechgpt_jax.demo_world import words as demo_words
from speechgpt_jax.demo_world.question_pattern import QuestionPattern
from speechgpt_jax.demo_world.question_patterns import question_patterns

SEED = 7
FREE_ORDER = "free_order"
TRAIN_WORDINGS = 3  # of each fact
COMBINATION_TEST_SHARE = 0.06
WORDING_TEST_QUESTIONS = 100
TEMPLATED_SENTENCES = {"train": 2400, "test": 100}
FREE_SENTENCES = {"train": 2600, "test": 100}
# Most further sentences of one kind: more would take a day to synthesize.
MOST_FURTHER = 1_000_000
# Parts of the plain sentences: those of every corpus, and those that its builder can add.
ALWAYS, MORE, SHORT, FOR_ANSWER_VOICE = "always", "more", "short", "for the answer voice"


@dataclass(frozen=True)
class Dialogue:
    """One wording of one question, and its answer."""

    topic: str
    question: str
    answer: str
    split: str  # train | test
    wording: str  # "sums/0": the pattern's name and the number of the wording
    fact: str  # "sums/two three five": the pattern's name and the values of its slots
    combination: str  # "sums/three + two"; "" if the fact has none
    held_out: str  # "" in train, else combination | wording


@dataclass(frozen=True)
class Sentence:
    """A plain sentence; its topic is `free_order` if its words are in random order."""

    topic: str
    text: str
    split: str
    part: str = ALWAYS


def words(text: str) -> list[str]:
    """ "yes, a duck can fly." -> ["yes", "a", "duck", "can", "fly"]."""
    return re.findall(r"[a-z]+", text)


# ---- questions and their splits ----------------------------------------------------------------


def _held_out_combinations(rng: random.Random) -> set[str]:
    """A random share, COMBINATION_TEST_SHARE, of the combinations of each family."""
    families: dict[str, set[str]] = {}
    for pattern in question_patterns():
        for combination in filter(None, map(pattern.combination_of, pattern.facts)):
            families.setdefault(pattern.family or pattern.name, set()).add(combination)
    return {
        combination
        for members in families.values()
        for combination in rng.sample(
            sorted(members), max(1, round(COMBINATION_TEST_SHARE * len(members)))
        )
    }


def _dialogue(
    pattern: QuestionPattern, fact: dict[str, str], wording: int, held_out: str
) -> Dialogue:
    return Dialogue(
        pattern.topic,
        pattern.wordings[wording].format(**fact),
        pattern.answer.format(**fact),
        "test" if held_out else "train",
        f"{pattern.name}/{wording}",
        f"{pattern.name}/{' '.join(fact.values())}",
        pattern.combination_of(fact),
        held_out,
    )


@cache
def questions() -> tuple[Dialogue, ...]:
    """All dialogues of both splits; every call returns the same."""
    rng = random.Random(SEED)
    held_out = _held_out_combinations(rng)
    train, by_combination, spare = [], [], []
    for pattern in question_patterns():
        for fact in pattern.facts:
            order = rng.sample(range(len(pattern.wordings)), len(pattern.wordings))
            if pattern.combination_of(fact) in held_out:
                by_combination.append(_dialogue(pattern, fact, order[0], "combination"))
                continue
            # At least two wordings of a fact stay in training if one of three is held out.
            train += [_dialogue(pattern, fact, i, "") for i in order[:TRAIN_WORDINGS]]
            spare.append(_dialogue(pattern, fact, order[-1], "wording"))
    by_wording = _sample_by_topic(spare, WORDING_TEST_QUESTIONS, rng)
    tested = {(d.fact, d.wording) for d in by_wording}
    train = [d for d in train if (d.fact, d.wording) not in tested]
    return tuple(train + by_combination + by_wording)


def _sample_by_topic(dialogues: list[Dialogue], count: int, rng: random.Random) -> list[Dialogue]:
    """`count` dialogues, one topic after the other, so that all topics have equal shares."""
    topics: dict[str, list[Dialogue]] = {}
    for dialogue in rng.sample(dialogues, len(dialogues)):
        topics.setdefault(dialogue.topic, []).append(dialogue)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*topics.values()))
    return list(itertools.islice(filter(None, turns), count))


# ---- plain sentences ---------------------------------------------------------------------------


@cache
def templated_sentences() -> tuple[Sentence, ...]:
    """Sentences of the patterns; those of test have pairs of fillers that training lacks."""
    rng = random.Random(SEED + 1)
    sentences: dict[str, Sentence] = {}
    for split, count in TEMPLATED_SENTENCES.items():
        target = len(sentences) + count
        while len(sentences) < target:
            topic, pattern, lists = rng.choice(demo_words.PATTERNS)
            fillers = [rng.choice(demo_words.FILLERS[name]) for name in lists.split()]
            # A fifth of the pairs is held out; the pair is the seed, so the choice is fixed.
            pair = f"{pattern}/{fillers[0]}/{fillers[1]}"
            if (random.Random(pair).random() < 0.2) == (split == "test"):
                text = pattern.format(*fillers)
                sentences.setdefault(text, Sentence(topic, text, split))
    return tuple(sentences.values())


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the questions, answers and templated sentences, sorted."""
    texts = [t for d in questions() for t in (d.question, d.answer)]
    texts += [s.text for s in templated_sentences()]
    return tuple(sorted({word for text in texts for word in words(text)}))


def is_free_order(text: str) -> bool:
    """Whether a text consists of the world's words and a final dot.

    So do the sentences that `free_order_sentences(more=...)` adds.

    "red seven feet." -> True. "red seven feet", without the dot, and "red psalms.", with a word
    that the world doesn't have -> False.
    """
    return text.endswith(".") and set(text[:-1].split(" ")) <= set(vocabulary())


def free_order_sentences(
    more: int = 0, short: int = 0, answer_voice: int = 0
) -> tuple[Sentence, ...]:
    """Strings of 4 to 9 words in random order, in which all words are equally frequent.

    Args:
      more: number of further ones for training; they follow the others.
      short: number of strings of 1 to 3 words, which follow them: with them a model first learns
        what each word sounds like, then where in a sentence it is.
      answer_voice: number of further ones of 4 to 9 words, which come last: for the voice of the
        answers, in which a model learns to read aloud.
    """
    rng = random.Random(SEED + 2)
    deck: list[str] = []
    sentences = []
    # One of them is a single word, which a short string could repeat.
    questions_of_test = {d.question for d in questions() if d.split == "test"}
    always = [(split, count, 4, 9, ALWAYS) for split, count in FREE_SENTENCES.items()]
    further = [
        ("train", more, 4, 9, MORE),
        ("train", short, 1, 3, SHORT),
        ("train", answer_voice, 4, 9, FOR_ANSWER_VOICE),
    ]
    for split, count, shortest, longest, part in always + further:
        for _ in range(count):
            length = rng.randint(shortest, longest)
            while len(deck) < length:
                deck += rng.sample(vocabulary(), len(vocabulary()))
            text = " ".join(deck[:length]) + "."
            deck = deck[length:]
            if text not in questions_of_test:
                sentences.append(Sentence(FREE_ORDER, text, split, part))
    return tuple(sentences)


def plain_sentences(more: int = 0, short: int = 0, answer_voice: int = 0) -> tuple[Sentence, ...]:
    """The sentences for ASR and TTS; arguments: see `free_order_sentences`."""
    return templated_sentences() + free_order_sentences(more, short, answer_voice)


def all_sentences(more: int = 0, short: int = 0) -> tuple[Sentence, ...]:
    """Distinct texts of questions, answers and plain sentences; a text in both splits is train.

    Arguments: see `free_order_sentences`.
    """
    found: dict[str, Sentence] = {}
    for d in questions():
        for text in (d.question, d.answer):
            found.setdefault(text, Sentence(d.topic, text, d.split))
    for sentence in plain_sentences(more, short):
        found.setdefault(sentence.text, sentence)
    return tuple(found.values())
