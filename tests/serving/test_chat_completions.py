"""Chat completions with OpenAI's own client, against a real server."""

import asyncio
import base64
import threading

import numpy as np
import openai
import pytest

from speechgpt_jax.decoding.conversation import Conversation
from speechgpt_jax.serving import sound
from speechgpt_jax.speech.audio import load_audio
from tests.serving import tiny
from tests.serving.clips import CLIP, QUESTION, input_audio

pytestmark = pytest.mark.slow

TEXT = [{"role": "user", "content": tiny.SUM}]
PART = input_audio(QUESTION.read_bytes())
RECORDING = PART["input_audio"]["data"]
SPOKEN = [{"role": "user", "content": [PART]}]
ALOUD = {"modalities": ["text", "audio"], "audio": {"voice": "slt", "format": "wav"}}
STREAMED = {**ALOUD, "audio": {"voice": "slt", "format": "pcm16"}, "stream": True}


def ask(client, messages=TEXT, **options):
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def test_a_text_is_answered_in_text(client):
    reply = ask(client)
    (choice,) = reply.choices
    assert choice.message.content == tiny.SUM_ANSWER
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert choice.message.audio is None
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert (reply.object, reply.model) == ("chat.completion", "tiny") and reply._request_id


def test_a_recording_is_answered_aloud(client):
    message = ask(client, SPOKEN, **ALOUD).choices[0].message
    assert message.question == CLIP["text"]
    assert message.content == message.audio.transcript == CLIP["answer"]
    wav = sound.decode(base64.b64decode(message.audio.data), 60)
    expected = tiny.speech_model().vocoder(tiny.CLIP_UNITS, speaker="slt")
    assert abs(len(wav) - len(expected)) < 400
    assert np.corrcoef(wav[: len(expected)], expected[: len(wav)])[0, 1] > 0.95


@pytest.mark.parametrize("format", ["mp3", "flac", "opus", "aac", "pcm16"])
def test_formats_of_the_answer(client, format):
    audio = {"voice": {"id": "rms"}, "format": format}
    message = ask(client, **{**ALOUD, "audio": audio}).choices[0].message
    data = base64.b64decode(message.audio.data)
    wav = sound.decode_pcm16(data) if format == "pcm16" else sound.decode(data, 60)
    assert tiny.is_sound(wav, (0.1, 4))


def test_a_text_is_answered_in_a_stream(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == tiny.SUM_ANSWER
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({c.id for c in chunks}) == 1


@pytest.mark.parametrize(
    "stop, content",
    [(" fiv", "it is"), (["five.", "t is f"], "i"), ("x" * 50, tiny.SUM_ANSWER)],
)
def test_a_reply_ends_before_a_stop_text(client, stop, content):
    (choice,) = ask(client, stop=stop).choices
    assert (choice.message.content, choice.finish_reason) == (content, "stop")
    chunks = [c.choices[0] for c in ask(client, stop=stop, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == content
    assert chunks[-1].finish_reason == "stop"


def test_a_recording_is_answered_aloud_in_a_stream(client):
    options = {**STREAMED, "stream_options": {"include_units": True}}
    deltas = [c.choices[0].delta for c in ask(client, SPOKEN, **options)]
    audio = [delta.audio for delta in deltas if delta.audio]
    assert "".join(a.transcript or "" for a in audio) == CLIP["answer"]
    # The client concatenates what has the same key.
    assert sum(a.id is not None for a in audio) == sum(a.expires_at is not None for a in audio) == 1
    wav = sound.decode_pcm16(b"".join(base64.b64decode(a.data or "") for a in audio))
    assert tiny.is_sound(wav, (0.1, 4))
    assert [unit for d in deltas for unit in getattr(d, "units", [])] == tiny.CLIP_UNITS
    seconds = [length for d in deltas for length in getattr(d, "unit_seconds", [])]
    assert seconds == tiny.unit_seconds(tiny.CLIP_UNITS)
    assert sum(seconds) == pytest.approx(len(wav) / 16_000, abs=1e-3)
    question = "".join(getattr(delta, "question", "") for delta in deltas)
    assert question == CLIP["text"]


def of_the_engine():
    """Tokens of the answer to the sum, as the engine gives them."""
    conversation = Conversation(tiny.speech_model(), max_new_tokens=96)
    conversation.answer(tiny.SUM, aloud=False)
    request = conversation.in_progress.request
    return list(tiny.speech_model().engine.submit(request))


def test_log_probabilities_of_the_answers_tokens(client):
    plain, whole = ask(client).choices[0], ask(client, logprobs=True, top_logprobs=0).choices[0]
    assert plain.logprobs is None and whole.message.content == plain.message.content
    chunks = [c.choices[0] for c in ask(client, logprobs=True, stream=True)]
    streamed = [token for c in chunks if c.logprobs for token in c.logprobs.content]
    expected = of_the_engine()
    for tokens in (whole.logprobs.content, streamed):
        assert "".join(token.token for token in tokens) == tiny.SUM_ANSWER
        assert bytes(b for token in tokens for b in token.bytes).decode() == tiny.SUM_ANSWER
        assert all(token.top_logprobs == [] for token in tokens)
        # What follows is the mark of the end.
        assert [t.logprob for t in tokens] == [t.logprob for t in expected[: len(tokens)]]
        assert len(tokens) > 2 and all(token.logprob <= 0 for token in tokens)


def test_log_probabilities_before_a_stop_text(client):
    for stream in (False, True):
        reply = ask(client, logprobs=True, stop=" fi", stream=stream)
        choices = [c.choices[0] for c in reply] if stream else reply.choices
        tokens = [token for c in choices if c.logprobs for token in c.logprobs.content]
        assert "".join(token.token for token in tokens) == "it is"


def test_the_clients_stream_helper(client):
    options = {name: value for name, value in STREAMED.items() if name != "stream"}
    with client.chat.completions.stream(
        model="tiny", messages=TEXT, logprobs=True, **options
    ) as stream:
        for _ in stream:
            pass
        (choice,) = stream.get_final_completion().choices
    assert choice.message.content == choice.message.audio.transcript == tiny.SUM_ANSWER
    assert "".join(token.token for token in choice.logprobs.content) == tiny.SUM_ANSWER
    assert choice.message.audio.id.count("audio_") == 1


def test_all_calls_with_the_asynchronous_client(address):
    async def talk():
        url = f"{address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            create = client.chat.completions.create
            whole, stream = await asyncio.gather(
                create(model="tiny", messages=TEXT),
                create(model="tiny", messages=TEXT, stream=True),
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(talk()) == (tiny.SUM_ANSWER, tiny.SUM_ANSWER)


def test_many_clients_get_their_own_answers(address):
    """More requests than slots, of three kinds, at the same time."""

    async def talk():
        url = f"{address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            create = client.chat.completions.create
            kinds = [TEXT, SPOKEN] * 6
            replies = await asyncio.gather(*(create(model="tiny", messages=m) for m in kinds))
            return [reply.choices[0].message.content for reply in replies]

    assert asyncio.run(talk()) == [tiny.SUM_ANSWER, CLIP["answer"]] * 6


@pytest.mark.parametrize("most", range(1, 7))
def test_a_reply_that_ends_before_a_stop_text_was_not_too_long(client, most):
    """The engine may have reached the limit when the stop text is found."""
    stop = " five"
    whole = ask(client, max_tokens=most).choices[0]
    has_stop = stop in whole.message.content
    for _ in range(3):
        choice = ask(client, max_tokens=most, stop=stop).choices[0]
        assert choice.finish_reason == ("stop" if has_stop else whole.finish_reason)


def test_messages_without_a_reply_in_between_are_one(client):
    both = [{"role": "user", "content": text} for text in ("what is", "two plus three?")]
    joined = [{"role": "user", "content": "what is two plus three?"}]
    replies = [ask(client, messages) for messages in (both, joined, [*both[:1], *SPOKEN], SPOKEN)]
    (a, b, c, d) = ((r.choices[0].message.content, r.usage.prompt_tokens) for r in replies)
    assert a == b and c == d


def test_history_may_name_earlier_replies(client):
    first = ask(client, **ALOUD).choices[0].message
    turns = [*TEXT, {"role": "assistant", "audio": {"id": first.audio.id}}, *SPOKEN]
    assert ask(client, turns).choices[0].message.content == CLIP["answer"]
    turns[1] = {"role": "assistant", "content": "five"}
    system = {"role": "system", "content": "Be brief."}
    assert ask(client, [system, *turns]).choices[0].message.content == CLIP["answer"]


def test_earlier_turns_are_read_up_to_the_tokens_that_are_allowed():
    with (
        tiny.serving(history_tokens=60) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        first = ask(client, TEXT, **ALOUD).choices[0].message
        by_text = [*TEXT, {"role": "assistant", "content": first.content}]
        by_id = [*TEXT, {"role": "assistant", "audio": {"id": first.audio.id}}]
        histories = [[], by_text, by_id, by_text * 20]
        replies = [ask(client, [*history, *TEXT], max_tokens=8) for history in histories]
    alone, *after = (reply.usage.prompt_tokens for reply in replies)
    # An earlier answer by its id has units too.
    assert alone < after[0] < after[1]
    # The oldest of many turns go.
    assert after[0] <= after[2] <= alone + 60


def test_recordings_of_a_history_are_encoded_in_the_thread_of_the_reply(monkeypatch):
    """Meanwhile the event loop goes on with other requests."""
    model, threads = tiny.speech_model(), []
    unit_text = model.unit_text

    def recorded(wav):
        threads.append(threading.current_thread().name)
        return unit_text(wav)

    with (
        tiny.serving(history_tokens=100) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        monkeypatch.setattr(model, "unit_text", recorded)
        alone = ask(client, TEXT).usage.prompt_tokens
        turns = [*SPOKEN, {"role": "assistant", "content": "five"}, *TEXT]
        assert ask(client, turns).usage.prompt_tokens > alone
    assert len(threads) == 1 and threads[0].startswith("reply")


def test_a_task_is_recognised(client):
    text = {"type": "text", "text": "Transcribe this speech. This is input:"}
    asked = {"role": "user", "content": [text, PART]}
    system = {"role": "system", "content": "Be brief."}
    for messages in ([asked], [system, asked], [asked, system]):
        assert ask(client, messages).choices[0].message.content == CLIP["text"]


def test_length_and_seed(client):
    reply = ask(client, max_completion_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3
    drawn = {"seed": 7, "temperature": 2.0, "top_p": 1.0, "extra_body": {"top_k": 0}}
    first, again = (ask(client, **drawn).choices[0].message.content for _ in range(2))
    assert ask(client, temperature=2.0, top_p=0).choices[0].message.content == tiny.SUM_ANSWER
    assert first == again != ask(client, **{**drawn, "seed": 8}).choices[0].message.content


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"messages": []}, "messages: ", "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "no words and no sound", "messages"),
        ({"messages": [{"role": "user", "content": [PART, PART]}]}, "at most one", "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "'system'", "messages.0.role"),
        ({"stop": ["a"] * 5}, "stop: expected", "stop"),
        (
            {"extra_body": {"top_k": 2**31}},
            "top_k: expected less than or equal to 2147483647",
            "top_k",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "user's message", "messages"),
        ({"temperature": 3}, "temperature: expected less than or equal to 2, got 3", "temperature"),
        ({"temperature": "hot"}, "temperature: expected a valid number, got 'hot'", "temperature"),
        ({"top_p": -1}, "top_p: expected greater than or equal to 0", "top_p"),
        ({"n": 2}, "n: expected 1, got 2", "n"),
        ({"n": True}, "n: expected a valid integer, got True", "n"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools: expected [], got [{'type': 'function'",
            "tools",
        ),
        ({"tool_choice": "required"}, "tool_choice: expected 'none' or 'auto'", "tool_choice"),
        ({"web_search_options": {}}, "web_search_options: expected null", "web_search_options"),
        ({"frequency_penalty": 2}, "frequency_penalty: expected 0, got 2", "frequency_penalty"),
        ({"presence_penalty": 0.5}, "presence_penalty: expected 0, got 0.5", "presence_penalty"),
        ({"logit_bias": {"5": 100}}, "logit_bias: expected {}, got {'5': 100}", "logit_bias"),
        (
            {"logprobs": True, "top_logprobs": 2},
            "top_logprobs: expected 0, since only tokens of the answer have log-probabilities here",
            "top_logprobs",
        ),
        (
            {"response_format": {"type": "json_object"}},
            "response_format.type: expected 'text', got 'json_object'",
            "response_format.type",
        ),
        ({"stop": [""]}, "stop.0: expected at least 1 characters, got ''", "stop.0"),
        ({"stop": ["a"] * 5}, "stop: expected at most 4 elements, got ['a', 'a'", "stop"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text is required",
            "messages.0.content.0.text",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{**PART, "input_audio": {"data": 5, "format": "wav"}}],
                    }
                ]
            },
            "messages.0.content.0.input_audio.data: expected a valid string, got 5",
            "messages.0.content.0.input_audio.data",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 257}]},
            "messages.0.content: expected at most 256 elements",
            "messages.0.content",
        ),
        ({**ALOUD, "stop": "a"}, "stop is only allowed for replies without audio", "stop"),
        ({"max_tokens": 0}, "max_tokens: expected greater", "max_tokens"),
        ({"max_tokens": 97}, "max_tokens: expected at most 96, got 97", "max_tokens"),
        (
            {"max_completion_tokens": 98},
            "max_completion_tokens: expected at most 96, got 98",
            "max_completion_tokens",
        ),
        ({"modalities": ["text", "audio"]}, "audio is required", "audio"),
        ({**ALOUD, "audio": {"voice": "alloy", "format": "wav"}}, "one of slt, rms", "voice"),
        ({**ALOUD, "audio": {"voice": "slt", "format": "ogg"}}, "got 'ogg'", "audio.format"),
        ({**ALOUD, "stream": True}, "a stream needs 'pcm16', got 'wav'", "audio.format"),
        ({"stream_options": {"include_usage": True}}, "stream: true", "stream_options"),
    ],
)
def test_illegal_requests(client, options, message, param):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, **{"messages": TEXT, **options})
    assert message in raised.value.body["message"]
    assert raised.value.param == param and raised.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("!", "expected base64"),
        ("", "is empty"),
        (base64.b64encode(b"no sound" * 99).decode(), "the recording is not readable as sound"),
        (RECORDING[: len(RECORDING) // 8 * 4], "the recording is"),
        (
            base64.b64encode(sound.encode_whole("flac", [np.zeros(96_000, np.float32)])).decode(),
            "longer than 5 s",
        ),
        (
            base64.b64encode(sound.encode_whole("wav", [np.zeros(200, np.float32)])).decode(),
            "shorter than one frame",
        ),
    ],
)
def test_bad_recordings(client, data, message):
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            ask(client, [{"role": "user", "content": [part]}], stream=stream)
        assert message in raised.value.body["message"]


def test_defaults_of_fields_that_the_server_lacks(client):
    defaults = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1}
    more = {"logprobs": False, "response_format": {"type": "text"}, "tools": []}
    assert ask(client, **defaults, **more).choices[0].message.content == tiny.SUM_ANSWER


def test_penalties_of_completions_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="frequency_penalty: expected 0, got 1"):
        client.completions.create(model="tiny", prompt=[1], frequency_penalty=1)


def test_unknown_things_are_not_found(client):
    with pytest.raises(openai.NotFoundError, match="expected tiny, got 'gpt-5'"):
        client.chat.completions.create(model="gpt-5", messages=TEXT)
    turns = [*TEXT, {"role": "assistant", "audio": {"id": "audio_1"}}, *TEXT]
    with pytest.raises(openai.NotFoundError, match="audio_1") as raised:
        ask(client, turns)
    assert raised.value.code == "audio_not_found"


def test_a_client_that_goes_away_frees_its_slot(address):
    """With drawn tokens the answer is as long as allowed; four of them hold all slots."""
    busy = "speechgpt_busy_slots"
    clients = [openai.OpenAI(base_url=f"{address}/v1", api_key="none") for _ in range(4)]
    options = {"temperature": 2.0, "top_p": 1.0, "extra_body": {"top_k": 0}, "stream": True}
    streams = [ask(client, SPOKEN, **options, seed=i) for i, client in enumerate(clients)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    tiny.wait_for(lambda: tiny.metric(address, busy) == 0, seconds=1)
    tiny.wait_for(lambda: tiny.metric(address, "speechgpt_replies") == 0, seconds=1)


def test_pcm16_recordings_have_no_header(client):
    data = sound.encode_whole("pcm16", [load_audio(QUESTION)])
    audio = {"data": base64.b64encode(data).decode(), "format": "pcm16"}
    messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}]
    assert ask(client, messages).choices[0].message.content
