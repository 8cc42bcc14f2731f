"""Masks: forms are kept, however a marker is cut into tokens; llguidance agrees on the grammars."""

import hypothesis
import hypothesis.strategies as st
import llguidance
import numpy as np
import pytest

from speechgpt_jax.decoding.masks import ANY, FORBIDDEN, FORMS, Masks, Part, grammar
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer

TOKENIZER = Tokenizer.from_pretrained(DEMO_TOKENIZER)
MASKS = Masks(TOKENIZER)
SOSP, EOSP = map(TOKENIZER.token_to_id, ("<sosp>", "<eosp>"))
GOOD = {
    "speech_to_speech": " what is it?; [ta] it is a cat.; [ua] <sosp><5><6><eosp>",
    "speech_to_text": " what is it?; [ta] it is a cat.<eoa>.",
    "text_to_speech": " it is a cat.; [ua] <sosp><5><eosp>",
    "text": " it is a cat.<eoa>.",
    "units": " <sosp><5><6><7><eosp>",
    ANY: " it is <sosp><5><eosp> a cat.",
}
# Those behind which a grammar, unlike the masks, allows more text are left out.
WRONG = ("[ta]", "<sosp>")


def end(form, ids):
    """State after the tokens, or FORBIDDEN."""
    state = MASKS.start(form)
    for id_ in ids:
        state = state if state == FORBIDDEN else int(MASKS.table[state, id_])
    return state


@pytest.mark.parametrize("form", GOOD)
def test_the_trained_form_is_allowed_and_then_ends(form):
    ids = TOKENIZER.encode(GOOD[form])
    assert end(form, [*ids, TOKENIZER.eos_id]) != FORBIDDEN
    if form != ANY:
        after = MASKS.table[end(form, ids)]
        np.testing.assert_array_equal(np.flatnonzero(after != FORBIDDEN), [TOKENIZER.eos_id])


@pytest.mark.parametrize(
    "form, text",
    [
        ("speech_to_speech", "what is it?<eoa>"),
        ("speech_to_speech", "what is it? <sosp>"),
        ("speech_to_speech", "what is it?; [ua]"),
        ("speech_to_speech", "what is [ua] it?; [ta] it is.; [ua] <sosp><5><eosp>"),
        ("speech_to_speech", "what is it?; [ta] [ta] it is.; [ua] <sosp><5><eosp>"),
        ("speech_to_speech", "what is it?<eoa> [ta] it is.; [ua] <sosp><5><eosp>"),
        ("text_to_speech", "it is.<eoa>. [ua] <sosp><5><eosp>"),
        ("text_to_speech", "it is [ta]; [ua] <sosp><5><eosp>"),
        ("text", "it is.; [ua] no"),
        ("text", "[ta] it is<eoa>"),
        ("text_to_speech", "it is.; [ua] it"),
        ("text_to_speech", "it is.; [ua] <sosp><eosp>"),
        ("text", "it is <sosp>"),
        ("text", "it is <5>"),
        ("text", "it is [Human]"),
        ("units", "it"),
        ("units", "<sosp><5> it"),
        (ANY, "<sosp><5><sosp>"),
        (ANY, "it <5>"),
        (ANY, "it <eosp>"),
    ],
)
def test_what_is_not_of_the_form_can_not_be_completed(form, text):
    ids = TOKENIZER.encode(text)
    assert end(form, [*ids, TOKENIZER.eos_id]) == FORBIDDEN


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("speech_to_speech", " what is it?; [ta] it is a cat.<eoa><sosp><5><eosp>"),
        ("text_to_speech", " it is a cat.<eoa> <sosp><5><eosp>"),
        ("text", " it is a cat.; [ua]"),
    ],
)
def test_the_other_end_of_a_text_is_read_as_the_right_one(form, text):
    assert end(form, [*TOKENIZER.encode(text), TOKENIZER.eos_id]) != FORBIDDEN


def test_units_are_exactly_between_their_tags():
    units = np.isin(np.arange(TOKENIZER.vocab_size), TOKENIZER.unit_ids)
    allowed = MASKS.table != FORBIDDEN
    for state, row in enumerate(allowed):
        if row[units].any():
            assert MASKS.part(state) is Part.UNITS and row[units].all()
            assert set(np.flatnonzero(row & ~units)) <= {EOSP}
    before = {state for state, row in enumerate(MASKS.table) if row[SOSP] != FORBIDDEN}
    assert not allowed[list(before)][:, units].any()


TEXTS = [i for i in range(3, TOKENIZER.unit_ids[0]) if i != TOKENIZER.eos_id]
PIECES = [i for i in TEXTS if set(TOKENIZER.decode([i])) & set("[]tua")][:200] + TEXTS[:50]


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_a_marker_is_found_however_it_is_cut(ids):
    text = "".join(TOKENIZER.decode([id_]) for id_ in ids)
    state = end("speech_to_text", ids)
    part = Part.TRANSCRIPT if "[ta]" not in text else Part.TEXT
    if "<eoa>" not in text:
        assert MASKS.part(state) is part


@pytest.mark.parametrize("form", ["text", "text_to_speech"])
@pytest.mark.parametrize("marker", ["<sosp>", "<eosp>", "[ta]"])
def test_a_marker_that_is_spelled_can_not_be_completed(form, marker):
    ids = [TOKENIZER.token_to_id(character) for character in "a" + marker[0] + marker]
    assert end(form, ids[:-1]) != FORBIDDEN and end(form, ids) == FORBIDDEN
    assert end(ANY, ids) != FORBIDDEN


def test_a_marker_of_single_characters():
    ids = [TOKENIZER.token_to_id(character) for character in "a[[ta]"]
    assert MASKS.part(end("speech_to_text", ids[:-1])) is Part.TRANSCRIPT
    assert MASKS.part(end("speech_to_text", ids)) is Part.TEXT


class Bytes:
    """A tokenizer of bytes and of the added tokens, as llguidance wants one."""

    special_token_ids = tuple(range(TOKENIZER.vocab_size))
    bos_token_id, eos_token_id = TOKENIZER.bos_id, TOKENIZER.eos_id
    tokens = tuple(
        [b"<%d>" % i for i in special_token_ids] + [bytes([byte]) for byte in range(256)]
    )

    def __call__(self, text):
        text = text.encode() if isinstance(text, str) else text
        return [TOKENIZER.vocab_size + byte for byte in text]


@pytest.mark.parametrize("form", GOOD)
def test_llguidance_accepts_and_refuses_the_same(form):
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))

    def accepts(text):
        matcher = llguidance.LLMatcher(tokenizer, grammar(form, TOKENIZER), log_level=0)
        ids = []
        for id_ in TOKENIZER.encode(text):
            is_text = id_ not in TOKENIZER.added_tokens.values()
            ids += Bytes()(TOKENIZER.decode([id_])) if is_text else [id_]
        return matcher.consume_tokens(ids) and matcher.is_accepting()

    bad = (text.replace("it is", f"it {marker} is") for text in GOOD.values() for marker in WRONG)
    for text in (*GOOD.values(), *bad):
        state = end(form, TOKENIZER.encode(text))
        is_whole = state != FORBIDDEN and MASKS.table[state, TOKENIZER.eos_id] != FORBIDDEN
        assert accepts(text) == is_whole, text


def test_unknown_forms_and_missing_units():
    with pytest.raises(ValueError, match="form 'song' must be one of speech_to_speech, "):
        MASKS.start("song")
    assert set(FORMS) < set(GOOD)
