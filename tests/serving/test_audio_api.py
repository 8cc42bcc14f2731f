"""Transcriptions and speech with OpenAI's own client, against a real server."""

import asyncio
import base64
import io
import itertools
import json
import re
import threading

import httpx2
import numpy as np
import openai
import pytest

from speechgpt_jax.decoding.conversation import Conversation
from speechgpt_jax.decoding.events import Sound
from speechgpt_jax.decoding.remote import EngineFailed
from speechgpt_jax.decoding.requests import Answer
from speechgpt_jax.serving import sound
from speechgpt_jax.serving.talker import Talker
from speechgpt_jax.speech.audio import load_audio
from tests.serving import tiny
from tests.serving.clips import CLIP, QUESTION

pytestmark = pytest.mark.slow


def transcribe(client, file=QUESTION, **options):
    return client.audio.transcriptions.create(model="tiny", file=file, **options)


def speak(client, **options):
    fields = {"model": "tiny", "voice": "slt", "input": tiny.GREETING, **options}
    return client.audio.speech.create(**fields)


# ---- transcriptions ------------------------------------------------------------------------------


def test_transcript(client):
    reply = transcribe(client)
    assert reply.text == CLIP["text"]
    assert reply.usage.type == "duration"
    assert transcribe(client, response_format="text") == CLIP["text"] + "\n"


@pytest.mark.parametrize("format", ["mp3", "opus", "wav", "flac", "aac"])
def test_formats_of_recordings(client, format):
    data = sound.encode_whole(format, [load_audio(QUESTION)])
    assert transcribe(client, (f"../../etc/passwd.{format}", data)).text


def test_words_and_segments_have_times(client):
    seconds = len(load_audio(QUESTION)) / 16_000
    granularities = ["word", "segment"]
    reply = transcribe(
        client, response_format="verbose_json", timestamp_granularities=granularities
    )
    assert reply.text == CLIP["text"] and reply.language == "english"
    assert reply.duration == pytest.approx(seconds)
    assert [word.word for word in reply.words] == reply.text.split()
    times = [time for word in reply.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds
    (segment,) = reply.segments
    assert (segment.start, segment.end, segment.text) == (times[0], times[-1], reply.text)
    assert transcribe(client, response_format="verbose_json").words is None


def test_captions(client):
    time = r"00:00:0\d[,.]\d{3}"
    srt = transcribe(client, response_format="srt")
    assert re.match(rf"1\n{time} --> {time}\n\w+", srt) and "," in srt
    vtt = transcribe(client, response_format="vtt")
    assert re.match(rf"WEBVTT\n\n{time} --> {time}\n\w+", vtt)
    words = [line for line in srt.splitlines() if re.match("[a-z]", line)]
    assert " ".join(words) == CLIP["text"]


def test_transcripts_are_streamed(client):
    events = list(transcribe(client, stream=True))
    *deltas, done = events
    assert all(event.type == "transcript.text.delta" for event in deltas)
    assert "".join(event.delta for event in deltas) == done.text == CLIP["text"]
    assert done.type == "transcript.text.done" and done.usage.output_tokens > 0


def test_log_probabilities_of_a_transcript(client):
    conversation = Conversation(tiny.speech_model(), max_new_tokens=96)
    conversation.transcribe(load_audio(QUESTION))
    request = conversation.in_progress.request
    expected = [token.logprob for token in tiny.speech_model().engine.submit(request)]
    whole = transcribe(client, include=["logprobs"])
    *deltas, done = transcribe(client, include=["logprobs"], stream=True)
    streamed = [token for delta in deltas for token in delta.logprobs]
    for tokens in (whole.logprobs, streamed, done.logprobs):
        assert "".join(token.token for token in tokens) == CLIP["text"]
        assert bytes(int(b) for token in tokens for b in token.bytes).decode() == CLIP["text"]
        assert [token.logprob for token in tokens] == expected[: len(tokens)]
    assert transcribe(client).logprobs is None


@pytest.mark.parametrize(
    ("file", "options", "message", "param"),
    [
        (b"", {}, "is empty", None),
        (b"no sound" * 99, {}, "the recording is not readable as sound", None),
        (QUESTION, {"response_format": "xml"}, "response_format: expected 'json'", None),
        (QUESTION, {"include": ["words"]}, "include.0: expected 'logprobs'", "include.0"),
        (
            QUESTION,
            {"include": ["logprobs"], "response_format": "text"},
            "include: logprobs need the response_format 'json', got 'text'",
            "include",
        ),
        (QUESTION, {"temperature": 9}, "temperature: expected less", "temperature"),
        (QUESTION, {"temperature": "nan"}, "temperature: expected a finite number", "temperature"),
        (
            QUESTION,
            {"timestamp_granularities": ["letter"]},
            "got 'letter'",
            "timestamp_granularities.0",
        ),
        (
            sound.encode_whole("flac", [np.zeros(100_000, np.float32)]),
            {},
            "longer than 5 s",
            None,
        ),
    ],
)
def test_illegal_transcriptions(client, file, options, message, param):
    with pytest.raises(openai.BadRequestError) as raised:
        transcribe(client, file, **options)
    assert message in raised.value.body["message"]
    assert param is None or raised.value.param == param


def test_a_form_without_a_file(address):
    url = f"{address}/v1/audio/transcriptions"
    reply = httpx2.post(url, files={"other": b"a"}, data={"model": "tiny"})
    assert reply.status_code == 400 and "file is required" in reply.text
    reply = httpx2.post(url, json={"model": "tiny"})
    assert reply.status_code == 400 and "expected" in reply.text.lower()
    reply = httpx2.post(url, content=b"--", headers={"Content-Type": "multipart/form-data"})
    message = "The form can't be read: Missing boundary in multipart."
    assert reply.status_code == 400 and reply.json()["error"]["message"] == message


def test_a_body_that_is_no_object(address):
    error = httpx2.post(f"{address}/v1/audio/speech", content=b"null").json()["error"]
    assert error["message"] == "The body: expected a JSON object, got None."
    assert error["param"] is None


# ---- speech --------------------------------------------------------------------------------------


def decoded(data, format):
    return sound.decode_pcm16(data) if format == "pcm" else sound.decode(data, 60)


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_speech(client, format):
    reply = speak(client, response_format=format)
    assert reply.response.headers["content-type"] == sound.MEDIA_TYPES[format]
    wav = decoded(reply.content, format)
    expected = tiny.speech_model().vocoder(tiny.GREETING_UNITS, speaker="slt")
    assert -0.02 < (len(wav) - len(expected)) / 16_000 < 0.12
    assert tiny.is_sound(wav, (0.1, 4))


def test_a_sentence_that_is_too_long_is_refused_before_the_first_byte(address):
    body = {"model": "tiny", "voice": "slt", "input": "good morning. " + "a" * 3000}
    for stream_format in ("audio", "sse"):
        url = f"{address}/v1/audio/speech"
        reply = httpx2.post(url, json=body | {"stream_format": stream_format})
        assert reply.status_code == 400 and "longer than the context" in reply.text


def test_speech_is_streamed_as_bytes(client):
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="slt", input=tiny.GREETING, response_format="wav"
    ) as reply:
        pieces = list(reply.iter_bytes())
    assert pieces[0][:4] == b"RIFF" and sum(piece.count(b"RIFF") for piece in pieces) == 1
    assert tiny.is_sound(sound.decode(b"".join(pieces), 60), (0.1, 4))


def test_speech_is_streamed_as_events(client):
    reply = speak(client, response_format="pcm", stream_format="sse")
    lines = [line for line in reply.text.split("\n\n") if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [e["type"] for e in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1)
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["output_tokens"]
    data = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert data == speak(client, response_format="pcm").content


def events_of_speech(client, **options):
    reply = speak(client, response_format="pcm", stream_format="sse", **options)
    lines = [line for line in reply.text.split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_long_text_is_read_sentence_by_sentence(client):
    """The sound of all is one recording; a request to the engine reads each."""
    *deltas, done = events_of_speech(client)
    alone = done["usage"]
    assert not any("units" in event or "unit_seconds" in event for event in deltas)
    text, with_units = "\n\n".join([tiny.GREETING] * 3), {"include_units": True}
    events = events_of_speech(client, input=text, extra_body=with_units)
    assert events[-1]["usage"] == {name: 3 * number for name, number in alone.items()}
    assert "incomplete_details" not in events[-1]
    wav = sound.decode_pcm16(b"".join(base64.b64decode(e["audio"]) for e in events[:-1]))
    one = tiny.speech_model().vocoder(tiny.GREETING_UNITS, speaker="slt")
    assert abs(len(wav) - 3 * len(one)) < 800
    seconds = [length for event in events for length in event.get("unit_seconds", [])]
    assert seconds == 3 * tiny.unit_seconds(tiny.GREETING_UNITS)
    assert [unit for e in events for unit in e.get("units", [])] == 3 * tiny.GREETING_UNITS
    # Each has the sound that it has alone.
    for part in (wav[: len(one)], wav[len(one) : 2 * len(one)]):
        assert np.corrcoef(part, one)[0, 1] > 0.95


def test_a_client_is_told_of_sentences_that_are_cut_off(caplog):
    text = f"{tiny.GREETING}\n\n{tiny.GREETING}"
    with (
        tiny.serving(max_new_tokens=3) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        done = events_of_speech(client, input=text)[-1]
        assert done["incomplete_details"] == {
            "reason": "max_output_tokens",
            "sentences": [tiny.GREETING] * 2,
        }
        assert speak(client, input=text).content
    (row,) = [json.loads(line) for line in caplog.messages if "speech_cut" in line]
    assert (row["cut"], row["sentences"]) == (2, 2)
    assert tiny.GREETING not in caplog.text


def test_speed_changes_the_length(client):
    lengths = [
        len(speak(client, response_format="pcm", speed=speed).content) for speed in (0.5, 1, 2)
    ]
    assert all(slow > 1.4 * fast for slow, fast in itertools.pairwise(lengths))


def test_both_calls_with_the_asynchronous_client(address):
    async def talk():
        url = f"{address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            audio = client.audio
            speech = await audio.speech.create(model="tiny", voice="slt", input=tiny.GREETING)
            stream = await audio.transcriptions.create(model="tiny", file=QUESTION, stream=True)
            pieces = [event.delta async for event in stream if hasattr(event, "delta")]
            return speech.content, "".join(pieces)

    speech, transcript = asyncio.run(talk())
    assert tiny.is_sound(sound.decode(speech, 60), (0.1, 4))
    assert transcript == CLIP["text"]


def test_what_is_said_can_be_read_back(client):
    data = speak(client, response_format="wav").content
    assert isinstance(transcribe(client, ("speech.wav", io.BytesIO(data))).text, str)


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"input": ""}, "input: expected", "input"),
        ({"input": " \n"}, "only white space", "input"),
        ({"input": "a" * 4097}, "at most 4096 characters", "input"),
        (
            {"voice": "alloy"},
            "one of slt, rms, kal16, jm_kumo, got 'alloy'",
            "voice",
        ),
        ({"voice": {"id": 3}}, "voice: expected a valid string", "voice"),
        ({"response_format": "ogg"}, "response_format: expected 'mp3'", "response_format"),
        ({"speed": 5}, "speed: expected less than or equal to 4", "speed"),
        ({"speed": 0.1}, "speed: expected greater than or equal to 0.25", "speed"),
    ],
)
def test_illegal_speech(client, options, message, param):
    with pytest.raises(openai.BadRequestError) as raised:
        speak(client, **options)
    assert message in raised.value.body["message"]
    assert raised.value.param == param


def test_the_voices_are_named(address):
    reply = httpx2.get(f"{address}/v1/models").json()
    assert reply["voices"] == ["slt", "rms", "kal16", "jm_kumo"]
    assert reply["default_voice"] == "slt"


def test_models(client):
    (model,) = client.models.list()
    assert (model.id, model.object) == ("tiny", "model") and model.owned_by
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="got 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.models.retrieve("other"),
        lambda client: speak(client, model="other"),
        lambda client: client.audio.transcriptions.create(model="other", file=QUESTION),
        lambda client: client.completions.create(model="other", prompt=[1]),
        lambda client: client.chat.completions.create(
            model="other", messages=[{"role": "user", "content": tiny.SUM}]
        ),
    ],
)
def test_an_unknown_model_has_the_code_of_openai(client, call):
    with pytest.raises(openai.NotFoundError) as raised:
        call(client)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


# ---- failures ------------------------------------------------------------------------------------


@pytest.fixture
def breaking(monkeypatch):
    """The engine fails after the first tokens of an answer."""
    bursts = Answer.bursts

    def broken(answer):
        yield next(bursts(answer))
        raise EngineFailed("the engine is gone")

    monkeypatch.setattr(Answer, "bursts", broken)


def test_an_error_within_a_stream_is_raised(client, breaking):
    messages = [{"role": "user", "content": tiny.SUM}]
    stream = client.chat.completions.create(model="tiny", messages=messages, stream=True)
    with pytest.raises(openai.APIError, match="server that writes the tokens failed"):
        list(stream)


def test_an_error_within_a_stream_is_raised_asynchronously(address, breaking):
    async def talk():
        url = f"{address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            messages = [{"role": "user", "content": tiny.SUM}]
            create = client.chat.completions.create
            async for _ in await create(model="tiny", messages=messages, stream=True):
                pass

    with pytest.raises(openai.APIError, match="server that writes the tokens failed"):
        asyncio.run(talk())


def test_sound_that_breaks_off_is_not_taken_for_whole(client, monkeypatch):
    def first_sound(*args, **options):
        yield Sound(np.zeros(16_000, np.float32))
        raise EngineFailed("the engine is gone")

    monkeypatch.setattr(Conversation, "reading", first_sound)
    with pytest.raises(openai.APIConnectionError):
        speak(client, response_format="pcm")


def test_a_failing_engine_and_a_server_that_loads_are_internal_errors(client, monkeypatch):
    def broken(*args, **options):
        raise EngineFailed("the engine is gone")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "reading", broken)
        with pytest.raises(
            openai.InternalServerError, match="server that writes the tokens failed"
        ) as raised:
            speak(client)
    assert raised.value.status_code == 503
    assert raised.value.response.headers["Retry-After"] == "5"
    warm = threading.Event()
    monkeypatch.setattr(Talker, "warm_up", lambda self: warm.wait())
    with tiny.serving(wait=False) as address:
        try:
            tiny.wait_for(lambda: tiny.status(address, "/healthz") == 200)
            with (
                openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as early,
                pytest.raises(openai.InternalServerError, match="still being loaded") as raised,
            ):
                speak(early)
        finally:
            warm.set()
    assert raised.value.status_code == 503


def test_models_with_the_asynchronous_client(address):
    async def models():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            names = [model.id async for model in client.models.list()]
            return names, (await client.models.retrieve("tiny")).id

    assert asyncio.run(models()) == (["tiny"], "tiny")
