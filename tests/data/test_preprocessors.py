"""Records to dialogues to tokens."""

from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from speechgpt_jax import prompts
from speechgpt_jax.data import descriptions, preprocessors
from speechgpt_jax.data.vocabulary import Vocabulary

GOLDEN = Path(__file__).parent.parent / "testdata" / "golden"
UTTERANCE = {"text": "hello {there}", "speaker": "slt", "units": tf.constant([5, 9], tf.int64)}
UNITS = "<sosp><5><9><eosp>"


def records(example, count=1):
    return tf.data.Dataset.from_tensors(example).repeat(count)


@pytest.fixture(scope="module")
def features():
    vocabulary = Vocabulary.from_pretrained(GOLDEN)
    return {k: seqio.Feature(vocabulary, add_eos=k == "targets") for k in ("inputs", "targets")}


def test_fill_is_format():
    text = preprocessors.fill(prompts.CROSS_MODAL, description="D", source="{x}", target="é")
    expected = prompts.CROSS_MODAL.format(description="D", source="{x}", target="é")
    assert text.numpy().decode() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preprocessor", "options", "source", "target"),
    [
        (
            preprocessors.speech_recognition,
            descriptions.ASR,
            UNITS,
            UTTERANCE["text"],
        ),
        (preprocessors.speech_synthesis, descriptions.TTS, UTTERANCE["text"], UNITS),
    ],
)
def test_pairs_under_random_descriptions(preprocessor, options, source, target):
    # A hundred descriptions, each missed with a chance of 0.99 ** 2000, one in half a billion.
    with seqio.utils.map_seed_manager(0):
        dialogues = list(preprocessor(records(UTTERANCE, 2000)).as_numpy_iterator())
    texts = {dialogue["plain_text"].decode() for dialogue in dialogues}
    assert texts == {
        prompts.CROSS_MODAL.format(description=d, source=source, target=target) for d in options
    }
    assert {d["prefix"].decode() for d in dialogues} == {prompts.DEFAULT_PREFIX}


@pytest.mark.slow
def test_prefix_and_dialogue_are_cut_before_the_first_role(features):
    dialogue = {"prefix": "Be kind. \n", "plain_text": "[Human]: hi [Human]<eoh>"}
    (tokens,) = preprocessors.tokenize_dialogues(records(dialogue), features)
    vocabulary = features["targets"].vocabulary
    assert tokens["inputs"].numpy().tolist() == vocabulary.encode("Be kind.")
    assert tokens["targets"].numpy().tolist() == vocabulary.encode("[Human]: hi [Human]<eoh>")


def test_a_dialogue_without_a_role_is_an_error(features):
    dialogue = {"prefix": "", "plain_text": "hello"}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"has no \[Human\]"):
        list(preprocessors.tokenize_dialogues(records(dialogue), features))


def test_written_instructions():
    pairs = records({"question": "why?", "answer": "so."})
    (dialogue,) = preprocessors.text_instruction(pairs).as_numpy_iterator()
    assert dialogue["plain_text"] == b"[Human]: why?<eoh> [SpeechGPT]: so.<eoa> "


@pytest.mark.parametrize("direction", preprocessors.DIRECTIONS)
def test_directions(direction):
    texts = {
        name: f"[Human]: {question}<eoh>. [SpeechGPT]: ok; {answer}<eoa>."
        for name, question, answer in [
            ("speech_to_speech", UNITS, UNITS),
            ("speech_to_text", UNITS + "\nWhy?", "so"),
            ("text_to_speech", "why?", f"[ua] {UNITS}"),
            ("text_to_text", "why?", "so"),
        ]
    }
    dataset = tf.data.Dataset.from_tensor_slices({"plain_text": list(texts.values())})
    (kept,) = preprocessors.only_direction(direction)(dataset).as_numpy_iterator()
    assert kept["plain_text"].decode() == texts[direction]


def test_an_unknown_direction():
    with pytest.raises(ValueError, match="direction must be one of speech_to_speech,"):
        preprocessors.only_direction("asr")


def test_units_are_concatenated_and_cut(features):
    units = [[1, 2, 3], [4, 5], [6]]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(units), output_signature=tf.TensorSpec([None], tf.int32)
    )
    windows = preprocessors.concatenate_and_cut(
        dataset.map(lambda tokens: {"targets": tokens}), {"targets": 4}
    )
    assert [w["targets"].tolist() for w in windows.as_numpy_iterator()] == [[1, 2, 3, 4], [5, 6]]


def test_only_keeps_one_speaker():
    said = {"speaker": ["slt", "rms", "slt"], "text": ["a", "b", "c"]}
    kept = preprocessors.only("speaker", "slt")(tf.data.Dataset.from_tensor_slices(said))
    assert [record["text"] for record in kept.as_numpy_iterator()] == [b"a", b"c"]


def recordings(*rows):
    speakers, texts, units = zip(*rows)
    ragged = {"speaker": tf.constant(speakers), "text": tf.constant(texts)}
    return tf.data.Dataset.from_tensor_slices({**ragged, "units": tf.ragged.constant(units)}).map(
        lambda record: {**record, "units": record["units"] + 0}
    )


def test_at_most_so_many_words():
    said = tf.data.Dataset.from_tensor_slices({"text": ["a b c", "a  b.", "a b c d", ""]})
    kept = preprocessors.at_most_words(3)(said)
    assert [record["text"] for record in kept.as_numpy_iterator()] == [b"a b c", b"a  b.", b""]


def test_recordings_of_one_speaker_are_joined():
    dataset = recordings(
        ("slt", "a cat.", [1, 5, 5, 1]),
        ("rms", "no.", [2, 3, 2]),
        ("slt", "dogs.", [1, 5, 9, 1]),
        ("slt", "rain", [1, 8, 1]),
        ("rms", "yes.", [2, 4, 2]),
    )
    joined = preprocessors.join_recordings(2, edge=1)(dataset)
    found = [(r["text"].decode(), r["units"].tolist()) for r in joined.as_numpy_iterator()]
    assert found == [("a cat dogs.", [1, 5, 9, 1]), ("no yes.", [2, 3, 4, 2])]


def test_recordings_shorter_than_their_edges():
    dataset = recordings(("slt", "a.", [7]), ("slt", "b.", []), ("slt", "c.", [7, 8, 9]))
    (joined,) = preprocessors.join_recordings(3, edge=2)(dataset).as_numpy_iterator()
    assert (joined["text"], joined["units"].tolist()) == (b"a b c.", [9])


def test_some_units_are_left_out_and_some_replaced():
    utterance = {"text": "a", "units": tf.range(1000, dtype=tf.int64)}
    with seqio.utils.map_seed_manager(0):
        first, second = preprocessors.vary_units(0.1)(records(utterance, 2)).as_numpy_iterator()
    assert first["units"].tolist() != second["units"].tolist()
    units = first["units"]
    assert 850 < len(units) < 950
    in_order = np.flatnonzero(np.diff(units) < 0)
    assert 30 < len(in_order) < 150  # A replaced unit is as often smaller as larger.
    with seqio.utils.map_seed_manager(0):
        (same,) = preprocessors.vary_units(0.0)(records(utterance)).as_numpy_iterator()
    assert same["units"].tolist() == list(range(1000))


def test_the_text_after_its_speech_has_the_loss(features):
    vocabulary = features["targets"].vocabulary
    bare = preprocessors.speech_and_text(records(UTTERANCE))
    (tokens,) = preprocessors.tokenize_texts(bare, features)
    assert tokens["inputs"].numpy().tolist() == vocabulary.encode(UNITS)
    whole = vocabulary.encode(f"{UNITS} {UTTERANCE['text']}")
    assert tokens["targets"].numpy().tolist() == whole[len(tokens["inputs"]) :]
