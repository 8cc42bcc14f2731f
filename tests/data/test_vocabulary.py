"""Ids of `encode_tf` are those of `encode`, for every string."""

import json
import pickle
import random
from pathlib import Path

import hypothesis
import pytest
import seqio
import tensorflow as tf
from hypothesis import strategies as st

from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.tokenizer import SentencePieceTokenizer, Tokenizer
from tests.tokenizer.byte_level import KINDS, mix, write

GOLDEN = Path(__file__).parent.parent / "testdata" / "golden"


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.from_pretrained(GOLDEN)


@pytest.fixture(scope="module")
def encode_batch(vocabulary):
    """Strings -> lists of ids, by one call of a compiled graph."""
    graph = tf.function(
        vocabulary.encode_tf, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )
    return lambda texts: graph(tf.constant(texts, tf.string)).to_list()


@pytest.mark.slow
def test_golden_ids(encode_batch):
    cases = json.loads((GOLDEN / "llama_tokenizer.json").read_text())["cases"]
    ids = encode_batch([case["text"] for case in cases])
    assert [[1, *row] for row in ids] == [case["ids"] for case in cases]


ADDED = ["[Human]", "[SpeechGPT]", "<sosp>", "<eosp>", "<eoh>", "<eos>"]
BROKEN = ["<", ">", "<1000>", "<01>", "< 5>", "<5", "5>", "[Human", "human]", "<eo", "<sosp", "<s>"]
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\v", "\f", "\x1c", "\x85", "\xa0", "\u1680", "\u2003"]
SPACES += ["\u2028", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u180e", "\0", "a\0 \0"]
WORDS = ["hello", "the license", "a.", "[ta]", "; [ua]", "</s>", "<unk>", "<eoa>", "▁", "é"]


def _mix(rng: random.Random, texts: list[str]) -> str:
    def fragment():
        kind = rng.randrange(6)
        if kind == 0:
            return "".join(f"<{rng.randrange(1000)}>" for _ in range(rng.randrange(1, 6)))
        return rng.choice([ADDED, BROKEN, SPACES, WORDS, texts][kind - 1])

    return "".join(fragment() for _ in range(rng.randrange(9)))


@pytest.mark.slow
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 2**32),
    texts=st.lists(st.text(max_size=12), min_size=1, max_size=20),
)
def test_graph_equals_python_on_random_mixes(vocabulary, encode_batch, seed, texts):
    rng = random.Random(seed)
    mixes = [_mix(rng, texts) for _ in range(400)]  # 25 x 400 = 10,000
    for text, ids in zip(mixes, encode_batch(mixes)):
        assert ids == vocabulary.encode(text), repr(text)


@pytest.mark.parametrize(
    "added",
    [
        ["<5>", "<a>b", "b<5>", "[x]"],
        ["<5>", "<5", "a>"],
        [">", "<5>"],
        ["[x]", "\n"],
        ["<5>", " "],
    ],
    ids=" ".join,
)
def test_added_tokens_of_any_form(added):
    vocabulary = Vocabulary(SentencePieceTokenizer.from_files(GOLDEN / "tokenizer.model", added))
    rng = random.Random(0)
    fragments = [*added, *added, *SPACES, *BROKEN, ">", "a", "b", "<a>"]
    mixes = ["".join(rng.choices(fragments, k=rng.randrange(9))) for _ in range(500)]
    expected = [vocabulary.encode(text) for text in mixes]
    assert vocabulary.encode_tf(tf.constant(mixes)).to_list() == expected


def test_one_string_and_empty_ones(vocabulary):
    assert vocabulary.encode_tf(tf.constant("a <5> b")).numpy().tolist() == [260, 2005, 285]
    assert vocabulary.encode_tf(tf.constant("")).shape == (0,)
    assert vocabulary.encode_tf(tf.constant([], tf.string)).to_list() == []
    assert vocabulary.encode_tf(tf.constant("")).dtype == tf.int32


def test_a_plain_model(vocabulary):
    plain = Vocabulary(SentencePieceTokenizer.from_files(GOLDEN / "tokenizer.model", []))
    ids = plain.encode_tf(tf.constant("hello <5>")).numpy().tolist()
    assert ids == plain.encode("hello <5>") != vocabulary.encode("hello <5>")


def test_decoding_stops_at_eos_and_leaves_out_control_tokens(vocabulary):
    ids = [1, 3002, 2005, 260, 2, 285]
    assert vocabulary.decode(ids) == "[Human] <5> a"
    assert vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == "[Human] <5> a"
    batch = vocabulary.decode_tf(tf.constant([ids, [2006, 2, 0, 0, 0, 0]]))
    assert batch.numpy().tolist() == [b"[Human] <5> a", b"<6>"]


def test_decode_tf_in_a_dataset(vocabulary):
    dataset = tf.data.Dataset.from_tensors(tf.constant([2005, 260])).map(vocabulary.decode_tf)
    assert list(dataset.as_numpy_iterator()) == [b"<5> a"]


def test_is_a_seqio_vocabulary(vocabulary):
    assert isinstance(vocabulary, seqio.Vocabulary)
    assert (vocabulary.vocab_size, vocabulary.pad_id, vocabulary.eos_id) == (3006, 0, 2)
    assert vocabulary == pickle.loads(pickle.dumps(vocabulary))
    assert vocabulary != Vocabulary(
        SentencePieceTokenizer.from_files(GOLDEN / "tokenizer.model", ["<0>"])
    )


@pytest.fixture(scope="module", params=KINDS)
def byte_level(request, tmp_path_factory):
    folder = write(tmp_path_factory.mktemp(request.param), request.param)
    return Vocabulary(Tokenizer.from_pretrained(folder).with_tokens(["<0>", "<1>", "<sosp>"]))


def test_a_tokenizer_json_has_the_ids_of_python_in_a_graph(byte_level):
    rng = random.Random(0)
    mixes = [mix(rng, ["<0> <1>", "<sosp>"]) for _ in range(200)]
    expected = [byte_level.encode(text) for text in mixes]
    dataset = tf.data.Dataset.from_tensor_slices(mixes).batch(64).map(byte_level.encode_tf)
    assert [row for batch in dataset for row in batch.to_list()] == expected
    assert byte_level.encode_tf(tf.constant(mixes[7])).numpy().tolist() == expected[7]
    assert byte_level.encode_tf(tf.constant([], tf.string)).to_list() == []
    assert byte_level.encode_tf(tf.constant("")).shape == (0,)
    assert byte_level.encode_tf(tf.constant(b"a\xff")).numpy().tolist() == byte_level.encode("a�")


def test_the_position_in_a_dataset_of_a_tokenizer_json_can_be_saved(byte_level, tmp_path):
    def open_dataset():
        return iter(tf.data.Dataset.from_tensor_slices(["a", "<0>b"]).map(byte_level.encode_tf))

    first, again = open_dataset(), open_dataset()
    next(first)
    path = tf.train.Checkpoint(iterator=first).write(str(tmp_path / "position"))
    tf.train.Checkpoint(iterator=again).read(path).assert_consumed()
    assert next(again).numpy().tolist() == byte_level.encode("<0>b")


def test_a_tokenizer_json_is_a_seqio_vocabulary(byte_level):
    assert byte_level == pickle.loads(pickle.dumps(byte_level))
    assert byte_level.pad_id == 0 and byte_level.unk_id is None
    ids = byte_level.encode("hi <1>!")
    assert byte_level.decode([*ids, byte_level.eos_id, 5]) == "hi<1>!"
    assert byte_level.decode_tf(tf.constant([ids])).numpy().tolist() == [b"hi<1>!"]
