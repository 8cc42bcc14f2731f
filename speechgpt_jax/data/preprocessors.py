"""Records of speech and text -> tokens of dialogues.

    utterance or dialogue record -> {prefix, plain_text}    one function per direction
    {prefix, plain_text}         -> {inputs, targets}       `tokenize_dialogues`, shared by all

`inputs` are the tokens of the prefix, `targets` those of the dialogue, user turn included:
`packing.pack` puts the loss on `targets` only, as in SpeechGPT's training. With `tokenize_answers`
the user turn belongs to the `inputs`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import seqio
import tensorflow as tf

from speechgpt_jax import prompts, unit_text
from speechgpt_jax.data import descriptions
from speechgpt_jax.errors import UserError

Example = dict[str, tf.Tensor]

DIRECTIONS = ("speech_to_speech", "speech_to_text", "text_to_speech", "text_to_text")

# The functions below are graph code already; AutoGraph would take some tenths of a second per
# function to rewrite them.
as_graph = tf.autograph.experimental.do_not_convert

# Dialogues are encoded in batches, since most of the cost is per call.
_ENCODE_BATCH = 32


def units_to_text(units: tf.Tensor) -> tf.Tensor:
    """`[5, 9]` -> `"<sosp><5><9><eosp>"`, in a TensorFlow graph."""
    tags = tf.strings.join(["<", tf.strings.as_string(units), ">"])
    return tf.strings.join([unit_text.START, tf.strings.reduce_join(tags), unit_text.END])


def fill(template: str, **values: tf.Tensor | str) -> tf.Tensor:
    """`template.format(**values)`, in a TensorFlow graph."""
    # Splitting on a group alternates: text, name, text, name, text.
    parts = re.split(r"\{(\w+)\}", template)
    return tf.strings.join([values[p] if i % 2 else p for i, p in enumerate(parts)])


def choose(options: Sequence[str], seed: tf.Tensor) -> tf.Tensor:
    """One of `options`, drawn with a stateless seed, int [2]."""
    index = tf.random.stateless_uniform([], seed, maxval=len(options), dtype=tf.int32)
    return tf.constant(options)[index]


@as_graph
@seqio.map_over_dataset(num_seeds=1)
def speech_recognition(utterance: Example, seed: tf.Tensor) -> Example:
    """ASR dialogue with a random description: units in, text out."""
    plain_text = fill(
        prompts.CROSS_MODAL,
        description=choose(descriptions.ASR, seed),
        source=units_to_text(utterance["units"]),
        target=utterance["text"],
    )
    return _dialogue(plain_text)


@as_graph
@seqio.map_over_dataset(num_seeds=1)
def speech_synthesis(utterance: Example, seed: tf.Tensor) -> Example:
    """TTS dialogue with a random description: text in, units out."""
    plain_text = fill(
        prompts.CROSS_MODAL,
        description=choose(descriptions.TTS, seed),
        source=utterance["text"],
        target=units_to_text(utterance["units"]),
    )
    return _dialogue(plain_text)


@as_graph
@seqio.map_over_dataset
def repetition(utterance: Example) -> Example:
    """Dialogue whose answer repeats the text of the request."""
    plain_text = fill(
        prompts.CROSS_MODAL,
        description="Repeat this text",
        source=utterance["text"],
        target=utterance["text"],
    )
    return _dialogue(plain_text)


@as_graph
@seqio.map_over_dataset
def speech_and_text(utterance: Example) -> Example:
    """A recording and its text, without a dialogue around them: `<sosp><5><9><eosp> a cat.`"""
    return {
        "prefix": tf.constant(""),
        "plain_text": tf.strings.join([units_to_text(utterance["units"]), " ", utterance["text"]]),
    }


@as_graph
@seqio.map_over_dataset
def text_instruction(record: Example) -> Example:
    """Dialogue of a written `question` and its written `answer`."""
    return _dialogue(fill(prompts.TEXT_INSTRUCTION, **record))


def question_and_answer(form: str) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor that puts dialogue records into one of the forms of `prompts`."""

    @as_graph
    @seqio.map_over_dataset
    def fill_form(dialogue: Example) -> Example:
        plain_text = fill(
            form,
            question=dialogue["question"],
            answer=dialogue["answer"],
            question_units=units_to_text(dialogue["question_units"]),
            answer_units=units_to_text(dialogue["answer_units"]),
        )
        return _dialogue(plain_text)

    return fill_form


def only(feature: str, value: str) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor that keeps the records whose `feature` has this value."""
    return as_graph(lambda dataset: dataset.filter(lambda record: record[feature] == value))


def at_most_words(number: int) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor that keeps the recordings whose text has at most `number` words."""

    def keep(utterance: Example) -> tf.Tensor:
        return tf.size(tf.strings.split(utterance["text"])) <= number

    return as_graph(lambda dataset: dataset.filter(keep))


def join_recordings(number: int, edge: int) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor that joins recordings of one speaker: new sentences without new recordings.

    Only `text` and `units` remain. A last group of fewer than `number` recordings is left out.

    `edge=1`: [1, 5, 1] "a cat." and [1, 7, 9, 1] "dogs." -> [1, 5, 7, 9, 1] "a cat dogs."

    Args:
      number: how many are joined to one.
      edge: number of units at either end of a recording, most of them silence, that are left out
        where recordings meet.
    """

    def speaker(utterance: Example) -> tf.Tensor:
        return tf.strings.to_hash_bucket_fast(utterance["speaker"], 2**31)

    def group(_, utterances: tf.data.Dataset) -> tf.data.Dataset:
        return utterances.ragged_batch(number, drop_remainder=True)

    def join(utterances: Example) -> Example:
        units, row = utterances["units"], tf.range(number)
        start = tf.where(row > 0, edge, 0)
        stop = tf.cast(units.row_lengths(), tf.int32) - tf.where(row < number - 1, edge, 0)
        position = tf.ragged.range(units.row_lengths(), row_splits_dtype=tf.int64).flat_values
        rows = tf.cast(units.value_rowids(), tf.int32)
        position = tf.cast(position, tf.int32)
        kept = (position >= tf.gather(start, rows)) & (position < tf.gather(stop, rows))
        units = tf.boolean_mask(units.flat_values, kept)
        changes = tf.concat([[True], units[1:] != units[:-1]], axis=0)[: tf.size(units)]
        before = tf.strings.regex_replace(utterances["text"][:-1], r"\.$", "")
        texts = tf.concat([before, utterances["text"][-1:]], axis=0)
        return {
            "text": tf.strings.reduce_join(texts, separator=" "),
            "units": tf.boolean_mask(units, changes),
        }

    return as_graph(
        lambda dataset: dataset.group_by_window(speaker, group, window_size=number).map(join)
    )


def vary_units(rate: float, field: str = "units") -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor that changes units at random, so that recordings can't be learned by heart.

    It is to units what SpecAugment (Park et al. 2019) is to spectra.

    Args:
      rate: probability with which a unit is replaced by a random unit of the recording, and
        afterwards with which it is dropped.
      field: name of the units' field.
    """

    @as_graph
    @seqio.map_over_dataset(num_seeds=3)
    def vary(utterance: Example, seeds: tf.Tensor) -> Example:
        units = utterance[field]
        number = tf.size(units)
        chances = tf.random.stateless_uniform([number], seeds[0])
        others = tf.random.stateless_uniform(
            [number], seeds[1], maxval=tf.maximum(number, 1), dtype=tf.int32
        )
        units = tf.where(chances < rate, tf.gather(units, others), units)
        kept = tf.random.stateless_uniform([number], seeds[2]) >= rate
        return {**utterance, field: tf.boolean_mask(units, kept)}

    return vary


def only_direction(direction: str) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor that keeps the dialogues of one direction, e.g. "speech_to_text".

    The direction names the modality of the user turn (up to `<eoh>`), then that of the answer.

    Raises:
      UserError: `direction` is none of DIRECTIONS.
    """
    if direction not in DIRECTIONS:
        raise UserError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}.")
    speech_in, speech_out = (side == "speech" for side in direction.split("_to_"))

    def keep(dialogue: Example) -> tf.Tensor:
        question = r"(?s)^.*?<eoh>"
        answer = tf.strings.regex_replace(dialogue["plain_text"], question, "")
        size = tf.strings.length(dialogue["plain_text"]) - tf.strings.length(answer)
        user_turn = tf.strings.substr(dialogue["plain_text"], 0, size)
        return (_has_speech(user_turn) == speech_in) & (_has_speech(answer) == speech_out)

    return as_graph(lambda dataset: dataset.filter(keep))


@as_graph
def tokenize_dialogues(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """`{prefix, plain_text}` -> `{inputs, targets}`, split before the first mark of a user's turn.

    Prefix and dialogue are encoded as one string, in the template of the vocabulary, because the
    tokenizer drops the white space before the mark.
    """
    mark = _template(output_features).human_mark
    return _tokenize(dataset, output_features, mark, lambda starts, length: starts[0])


@as_graph
def tokenize_answers(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Like `tokenize_dialogues`, but split after the mark of the last answer, e.g. `[SpeechGPT]`:
    the loss is on this answer alone.
    """
    mark = _template(output_features).answer_mark
    return _tokenize(dataset, output_features, mark, lambda starts, length: starts[-1] + length)


@as_graph
def tokenize_texts(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Like `tokenize_dialogues`, but split after the speech: the loss is on the text alone."""
    return _tokenize(
        dataset, output_features, unit_text.END, lambda starts, length: starts[0] + length
    )


def render(prompt_template: prompts.Template, prefix: tf.Tensor, dialogue: tf.Tensor) -> tf.Tensor:
    """`prompt_template.render` of each dialogue of a batch [B], in a TensorFlow graph."""
    if not prompt_template.rewrites:
        return tf.strings.join([prefix, dialogue])
    for pattern, replacement in prompt_template.rewrites:
        dialogue = tf.strings.regex_replace(dialogue, pattern, replacement)
    start, end = prompt_template.system
    prefix = tf.strings.strip(prefix)
    system = tf.where(prefix == "", "", tf.strings.join([start, prefix, end]))
    return tf.strings.join([system, dialogue])


def _template(output_features: Mapping[str, seqio.Feature]) -> prompts.Template:
    return output_features["targets"].vocabulary.tokenizer.template


def _tokenize(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    mark: str,
    start_of_targets: Callable[[tf.Tensor, int], tf.Tensor],
) -> tf.data.Dataset:
    """Splits each dialogue at the index that `start_of_targets(starts, length)` returns.

    `starts` are the places of `mark` in the dialogue, `length` is its number of tokens.
    """
    vocabulary = output_features["targets"].vocabulary
    template = vocabulary.tokenizer.template
    for token in template.special_tokens or (mark,):
        vocabulary.tokenizer.token_to_id(token)  # Raises a UserError if it is missing.
    ids = vocabulary.tokenizer.encode(mark)

    def encode(dialogues: Example) -> tf.RaggedTensor:
        return vocabulary.encode_tf(render(template, dialogues["prefix"], dialogues["plain_text"]))

    def cut(tokens: tf.Tensor) -> Example:
        places = tf.size(tokens) - len(ids) + 1
        matches = [tokens[i : places + i] == id_ for i, id_ in enumerate(ids)]
        starts = tf.where(tf.reduce_all(matches, axis=0))[:, 0]
        found = tf.debugging.assert_positive(
            tf.size(starts), f"A dialogue has no {mark} in its plain_text."
        )
        with tf.control_dependencies([found]):
            start = start_of_targets(starts, len(ids))
        return {"inputs": tokens[:start], "targets": tokens[start:]}

    tokens = dataset.batch(_ENCODE_BATCH).map(encode, num_parallel_calls=tf.data.AUTOTUNE)
    return tokens.unbatch().map(cut, num_parallel_calls=tf.data.AUTOTUNE)


@as_graph
def tokenize_unit_text(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """`{unit_text}` -> `{targets}`."""
    vocabulary = output_features["targets"].vocabulary
    tokens = dataset.batch(_ENCODE_BATCH).map(
        lambda example: {"targets": vocabulary.encode_tf(example["unit_text"])},
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return tokens.unbatch()


@as_graph
def concatenate_and_cut(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int]
) -> tf.data.Dataset:
    """All `targets` concatenated, then cut every `sequence_length["targets"]` tokens.

    [1, 2, 3], [4, 5], [6] at length 4 -> [1, 2, 3, 4], [5, 6].
    """
    return dataset.rebatch(sequence_length["targets"])


@as_graph
@seqio.map_over_dataset
def utterance_to_unit_text(utterance: Example) -> Example:
    """`{units}` -> `{unit_text}`."""
    return {"unit_text": units_to_text(utterance["units"])}


def _dialogue(plain_text: tf.Tensor) -> Example:
    return {"prefix": tf.constant(prompts.DEFAULT_PREFIX), "plain_text": plain_text}


def _has_speech(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_full_match(text, r"(?s).*<sosp>.*")
