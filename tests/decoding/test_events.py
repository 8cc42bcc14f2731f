"""Events of written answers: joined they are what the template's parser finds in the whole text."""

import hypothesis
import hypothesis.strategies as st
import pytest

from speechgpt_jax import prompts
from speechgpt_jax.decoding.conversation import Reply
from speechgpt_jax.decoding.events import Text, Transcript, Units, text_and_unit_events
from speechgpt_jax.decoding.masks import Masks
from speechgpt_jax.decoding.requests import Token
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer

TOKENIZER = Tokenizer.from_pretrained(DEMO_TOKENIZER)
MASKS = Masks(TOKENIZER)
WHOLE = " [tq] what is it, a [t] or é?; [ta] it is a [u] cat; or é😀.; [ua] <sosp><5><60><7><eosp>"


def events_of(text, form, sizes, **kwargs):
    # The log-probability of each token is its number.
    tokens = [Token(id_, float(i)) for i, id_ in enumerate(TOKENIZER.encode(text))]
    bursts = []
    for size in sizes:
        bursts.append(tokens[:size])
        tokens = tokens[size:]
    bursts.append(tokens)
    events = text_and_unit_events(bursts, form, MASKS, TOKENIZER, **kwargs)
    return [event for burst in events for event in burst]


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.lists(st.integers(0, 4), max_size=60))
def test_the_events_do_not_depend_on_the_bursts(sizes):
    events = events_of(WHOLE, "speech_to_speech", sizes)
    order = [(Transcript, Text, Units).index(type(event)) for event in events]
    assert order == sorted(order)
    reply, expected = Reply.of(events), prompts.SPEECHGPT_TEMPLATE.parse(WHOLE)
    assert (reply.transcript, reply.units) == (expected.question, expected.units)
    assert reply.text == "it is a [u] cat; or é😀."
    tokens = [t for event in events if isinstance(event, Text) for t in event.tokens]
    assert b"".join(token.bytes for token in tokens) == reply.text.encode()
    numbers = [int(token.logprob) for token in tokens]
    first = TOKENIZER.encode(WHOLE.partition("[ta]")[0] + "[ta]")
    assert numbers == list(range(len(first), len(first) + len(tokens)))
    assert tokens[0].bytes == b"it" and any(len(token.bytes) == 1 for token in tokens)
    # Each comes with the piece of text in which it ends.
    shown = written = 0
    for event in events:
        if isinstance(event, Text):
            shown += len(event.text.encode())
            written += sum(len(token.bytes) for token in event.tokens)
            assert written <= shown
    assert written == shown


@pytest.mark.parametrize("text", [" it is.<eoa>.", " it is.", " it is. <e", " it is.<eoa> "])
def test_the_end_of_a_text(text):
    one_by_one = [1] * 20
    expected = "it is. <e" if text.endswith("<e") else "it is."
    assert Reply.of(events_of(text, "text", one_by_one)).text == expected
    cut = events_of(text, "text", one_by_one, was_cut=lambda: True)
    assert Reply.of(cut).text == "it is."
    tokens = [token for event in cut for token in event.tokens]
    assert b"".join(token.bytes for token in tokens) == b"it is."
