"""Transcriptions and speech with OpenAI's own client, against a real server."""

import asyncio
import base64
import io
import itertools
import json
import re

import httpx2
import numpy as np
import openai
import pytest

from speechgpt_jax.serving import sound
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


@pytest.mark.parametrize(
    ("file", "options", "message", "param"),
    [
        (b"", {}, "is empty", None),
        (b"no sound" * 99, {}, "the recording is not readable as sound", None),
        (QUESTION, {"response_format": "xml"}, "response_format: expected 'json'", None),
        (QUESTION, {"temperature": 9}, "temperature: expected less", "temperature"),
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
    alone = events_of_speech(client)[-1]["usage"]
    events = events_of_speech(client, input="\n\n".join([tiny.GREETING] * 3))
    assert events[-1]["usage"] == {name: 3 * number for name, number in alone.items()}
    assert "incomplete_details" not in events[-1]
    wav = sound.decode_pcm16(b"".join(base64.b64decode(e["audio"]) for e in events[:-1]))
    one = tiny.speech_model().vocoder(tiny.GREETING_UNITS, speaker="slt")
    assert abs(len(wav) - 3 * len(one)) < 800
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
