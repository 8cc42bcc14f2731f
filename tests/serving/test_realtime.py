"""Realtime sessions with OpenAI's own client, against a real server."""

import asyncio
import base64
import contextlib
import json
import logging
import threading
import time

import numpy as np
import openai
import pytest
import websockets.exceptions
import websockets.sync.client

from speechgpt_jax import prompts
from speechgpt_jax.decoding.conversation import Conversation
from speechgpt_jax.decoding.requests import Answer
from speechgpt_jax.serving import realtime, sound
from speechgpt_jax.serving.limits import Limits
from speechgpt_jax.serving.protocol import ApiError
from speechgpt_jax.serving.talker import Talker
from speechgpt_jax.speech.audio import load_audio
from speechgpt_jax.unit_text import units_to_text
from tests.serving import tiny
from tests.serving.clips import QUESTION
from tests.serving.conftest import FRIEND

pytestmark = pytest.mark.slow

DONE = "response.done"


@pytest.fixture
def connection(address):
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        client.realtime.connect(model="tiny") as connection,
    ):
        assert connection.recv().type == "session.created"
        yield connection


def pcm(wav):
    return sound.encode_whole("pcm16", [wav])


def silence(seconds):
    return bytes(2 * int(24_000 * seconds))


def append(connection, data, size=4800):
    for start in range(0, len(data), size):
        audio = base64.b64encode(data[start : start + size]).decode()
        connection.input_audio_buffer.append(audio=audio)


def until(connection, kind):
    """Events up to one of a kind."""
    events = [connection.recv()]
    while events[-1].type != kind:
        assert events[-1].type != "error", events[-1]
        events.append(connection.recv())
    return events


def of_kind(events, kind):
    return [event for event in events if event.type == kind]


def wav_of(events):
    deltas = of_kind(events, "response.output_audio.delta")
    return sound.decode_pcm16(b"".join(base64.b64decode(event.delta) for event in deltas))


def by_hand(connection, **session):
    """Without a VAD: the client says where a turn ends."""
    audio = {"input": {"turn_detection": None}}
    connection.session.update(session={"type": "realtime", "audio": audio, **session})
    assert connection.recv().session.audio.input.turn_detection is None


def test_a_text_is_answered_aloud(connection):
    content = [{"type": "input_text", "text": tiny.SUM}]
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    added = until(connection, "conversation.item.done")
    assert [event.type for event in added[:-1]] == ["conversation.item.added"]
    connection.response.create()
    events = until(connection, DONE)
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds[:5] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
    ]
    assert kinds[-6:] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        DONE,
    ]
    assert of_kind(events, "conversation.item.done")[0].item.status == "completed"
    deltas = of_kind(events, "response.output_audio_transcript.delta")
    assert "".join(event.delta for event in deltas) == tiny.SUM_ANSWER
    response = events[-1].response
    assert response.status == "completed" and response.usage.total_tokens > 0
    assert response.output[0].content[0].transcript == tiny.SUM_ANSWER
    expected = tiny.speech_model().vocoder(tiny.SUM_UNITS, speaker="slt")
    assert abs(len(wav_of(events)) - len(expected)) < 400


def test_sound_that_the_client_commits(connection):
    by_hand(connection, output_modalities=["text"])
    append(connection, pcm(load_audio(QUESTION)))
    connection.input_audio_buffer.commit()
    committed = until(connection, "conversation.item.done")
    assert committed[0].type == "input_audio_buffer.committed"
    assert committed[1].item.id == committed[0].item_id
    connection.response.create()
    events = until(connection, DONE)
    (heard,) = of_kind(events, "conversation.item.input_audio_transcription.completed")
    assert heard.item_id == committed[0].item_id and heard.transcript
    (text,) = of_kind(events, "response.output_text.done")
    assert text.text == "".join(e.delta for e in of_kind(events, "response.output_text.delta"))
    assert not of_kind(events, "response.output_audio.delta")


def test_the_server_finds_the_end_of_a_turn(connection):
    append(connection, silence(1) + pcm(load_audio(QUESTION)) + silence(1))
    events = until(connection, DONE)
    kinds = [event.type for event in events]
    assert kinds[:3] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    started, stopped = events[:2]
    assert started.audio_start_ms == pytest.approx(700, abs=300)
    seconds = len(load_audio(QUESTION)) / 16_000
    assert stopped.audio_end_ms == pytest.approx(1500 + 1000 * seconds, abs=500)
    assert len({event.item_id for event in events[:3]}) == 1
    # The model knows the clip without silence around it; its answer to this may have any length.
    assert events[-1].response.status in ("completed", "incomplete")
    assert of_kind(events, "response.output_audio_transcript.delta")


@pytest.fixture
def held(monkeypatch):
    """An event before which replies stay at their first tokens, unless they are cancelled."""
    go, bursts = threading.Event(), Answer.bursts

    def held_bursts(answer):
        for burst in bursts(answer):
            yield burst
            while not (go.is_set() or answer.is_cancelled):
                go.wait(0.02)

    monkeypatch.setattr(Answer, "bursts", held_bursts)
    yield go
    go.set()


def test_speaking_interrupts_the_reply(connection, held):
    """The second question begins while the first is answered."""
    question = pcm(load_audio(QUESTION))
    append(connection, silence(0.5) + question + silence(0.6))
    until(connection, "response.created")
    append(connection, question + silence(1))
    response = until(connection, DONE)[-1].response
    assert (response.status, response.status_details.reason) == ("cancelled", "turn_detected")
    held.set()
    assert until(connection, DONE)[-1].response.status in ("completed", "incomplete")


def test_questions_that_do_not_interrupt_are_answered_next(connection, held):
    detection = {"type": "server_vad", "interrupt_response": False}
    audio = {"input": {"turn_detection": detection}}
    connection.session.update(session={"type": "realtime", "audio": audio})
    question = pcm(load_audio(QUESTION))
    append(connection, silence(0.5) + question + silence(0.6))
    until(connection, "response.created")
    asked = []
    for _ in range(2):
        append(connection, question + silence(1))
        asked.append(until(connection, "input_audio_buffer.committed")[-1].item_id)
    held.set()
    answered = []
    for _ in range(3):
        events = until(connection, DONE)
        assert events[-1].response.status in ("completed", "incomplete")
        kind = "conversation.item.input_audio_transcription.completed"
        answered += [event.item_id for event in of_kind(events, kind)]
    assert answered[1:] == asked


def test_earlier_turns_of_a_session_are_read():
    with (
        tiny.serving(history_tokens=60) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        client.realtime.connect(model="tiny") as connection,
    ):
        assert connection.recv().type == "session.created"
        by_hand(connection, output_modalities=["text"])
        content = [{"type": "input_text", "text": tiny.SUM}]
        item = {"type": "message", "role": "user", "content": content}
        numbers = []
        for _ in range(2):
            connection.conversation.item.create(item=item)
            connection.response.create()
            numbers.append(until(connection, DONE)[-1].response.usage.input_tokens)
    assert numbers[0] < numbers[1] <= numbers[0] + 60


def test_instructions_of_a_session_are_ignored(connection):
    by_hand(connection, instructions="Be brief.", output_modalities=["text"])
    content = [{"type": "input_text", "text": tiny.SUM}]
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    connection.response.create(response={"instructions": "Be kind."})
    (text,) = of_kind(until(connection, DONE), "response.output_text.done")
    assert text.text == tiny.SUM_ANSWER


def ask_aloud(connection, **options):
    """Events of the answer to the sum."""
    content = [{"type": "input_text", "text": tiny.SUM}]
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    connection.response.create(**options)
    return until(connection, DONE)


def test_a_response_has_a_voice_of_its_own(connection):
    by_hand(connection)
    for options, voice in [
        ({"response": {"audio": {"output": {"voice": "rms"}}}}, "rms"),
        ({}, "slt"),
    ]:
        wav = wav_of(ask_aloud(connection, **options))
        expected = tiny.speech_model().vocoder(tiny.SUM_UNITS, speaker=voice)
        size = min(len(wav), len(expected))
        assert np.corrcoef(wav[:size], expected[:size])[0, 1] > 0.95


def test_an_answer_that_was_interrupted_is_shortened_in_the_history(connection, monkeypatch):
    """The user stops listening when the answer was sent long ago."""
    histories, ask = [], Conversation.ask

    def recorded(self, *args, **options):
        histories.append(list(self.history))
        return ask(self, *args, **options)

    monkeypatch.setattr(Conversation, "ask", recorded)
    by_hand(connection)
    prompt = prompts.TEXT_TO_SPEECH_PROMPT.format(question=tiny.SUM)
    seconds = tiny.unit_seconds(tiny.SUM_UNITS)
    expected = []
    # All of it, its first words, nothing.
    for words, number in [("it is five.", len(seconds)), ("it is", 7), ("", 0)]:
        item_id = ask_aloud(connection)[-1].response.output[0].id
        heard = round(1000 * sum(seconds[:number]))
        connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=heard)
        truncated = connection.recv()
        assert truncated.type == "conversation.item.truncated"
        assert (truncated.item_id, truncated.audio_end_ms) == (item_id, heard)
        units = units_to_text(tiny.SUM_UNITS[:number])
        expected.append(f"{prompt} [ta] {words}; [ua] {units}<eoa>. " if words else "")
    ask_aloud(connection)
    assert histories[-1] == expected
    for wrong, message in [
        ({"item_id": "item_1"}, "expected the id of an answer with sound, got 'item_1'"),
        ({"audio_end_ms": 99_999}, "ms of sound, got 99999"),
        ({"content_index": 1}, "content_index: expected 0, got 1"),
    ]:
        event = {"item_id": item_id, "content_index": 0, "audio_end_ms": 0} | wrong
        connection.conversation.item.truncate(**event)
        assert message in until(connection, "error")[-1].error.message


def test_an_answer_in_progress_is_not_shortened(connection, held):
    by_hand(connection)
    content = [{"type": "input_text", "text": tiny.SUM}]
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    connection.response.create()
    item_id = until(connection, "response.output_item.added")[-1].item.id
    connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=0)
    assert "cancel it first" in until(connection, "error")[-1].error.message
    connection.response.cancel()
    assert until(connection, DONE)[-1].response.status == "cancelled"
    connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=0)
    assert connection.recv().type == "conversation.item.truncated"


def test_cancel(address, connection, held):
    """Of the response that is named; all that was begun is ended."""
    by_hand(connection)
    append(connection, pcm(load_audio(QUESTION)))
    connection.input_audio_buffer.commit()
    connection.response.create()
    id_ = until(connection, "response.content_part.added")[-1].response_id
    connection.response.cancel(response_id="resp_other")
    error = until(connection, "error")[-1].error
    assert f"response_id: expected '{id_}'" in error.message and "'resp_other'" in error.message
    assert error.code == "response_cancel_not_active"
    connection.response.cancel(response_id=id_)
    *events, done = until(connection, DONE)
    assert [event.type for event in events if "delta" not in event.type][-5:] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
    ]
    response = done.response
    assert (response.status, response.status_details.reason) == ("cancelled", "client_cancelled")
    assert response.output[0].content[0].transcript == events[-3].part.transcript
    tiny.wait_for(lambda: tiny.metric(address, "speechgpt_busy_slots") == 0, seconds=1)


def test_the_clients_own_ids_and_notes(connection):
    content = [{"type": "input_text", "text": tiny.SUM}]
    item = {"type": "message", "role": "user", "content": content, "id": "mine"}
    connection.conversation.item.create(item=item)
    assert until(connection, "conversation.item.done")[-1].item.id == "mine"
    connection.conversation.item.create(item=item)
    assert "there is an item 'mine' already" in until(connection, "error")[-1].error.message
    options = {"metadata": {"topic": "sums"}, "output_modalities": ["text"]}
    connection.response.create(response=options)
    events = until(connection, DONE)
    for event in (events[0], events[-1]):
        assert event.response.metadata == {"topic": "sums"}


def test_length(connection):
    by_hand(connection, max_output_tokens=2, output_modalities=["text"])
    content = [{"type": "input_text", "text": tiny.SUM}]
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    connection.response.create()
    response = until(connection, DONE)[-1].response
    assert response.status == "incomplete"
    assert response.status_details.reason == "max_output_tokens"


def test_a_refused_response_leaves_the_question(connection):
    by_hand(connection, output_modalities=["text"])
    content = [{"type": "input_text", "text": tiny.SUM}]
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    connection.response.create(response={"max_output_tokens": 4096})
    assert "expected at most 96, got 4096" in until(connection, "error")[-1].error.message
    connection.response.create()
    assert until(connection, DONE)[-1].response.status == "completed"


def sound_item(**fields):
    part = {"type": "input_audio", **fields}
    item = {"type": "message", "role": "user", "content": [part]}
    return {"type": "conversation.item.create", "item": item}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "response.sing"}, "type: expected one of session.update"),
        ({"type": "input_audio_buffer.append"}, "audio is required"),
        ({"type": "input_audio_buffer.append", "audio": "!"}, "expected base64"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "3 bytes"),
        ({"type": "input_audio_buffer.commit"}, "0 ms of sound"),
        ({"type": "response.create"}, "no message of the user"),
        ({"type": "response.cancel"}, "no response in progress"),
        ({"type": "response.create", "response": {"conversation": "none"}}, "expected 'auto'"),
        (
            {"type": "response.create", "response": {"audio": {"output": {"voice": "x"}}}},
            "voice: expected one of slt, rms",
        ),
        ({"type": "response.create", "response": []}, "response: expected a JSON object, got []"),
        ({"type": "response.create", "response": {"metadata": {"a": 1}}}, "metadata.a: expected"),
        (
            {"type": "response.create", "response": {"audio": {"output": {"voice": ""}}}},
            "voice: expected one of slt, rms",
        ),
        ({"type": "response.cancel", "response_id": 5}, "response_id: expected a valid string"),
        ({"type": "session.update"}, "session is required"),
        ({"type": "session.update", "session": {"audio": {"output": {"voice": "x"}}}}, "slt, rms"),
        ({"type": "session.update", "session": {"type": "transcription"}}, "expected 'realtime'"),
        ({"type": "session.update", "session": {"model": "gpt"}}, "session.model: expected one of"),
        ({"type": "session.update", "session": {"tools": [{}]}}, "session.tools: expected"),
        (
            {"type": "session.update", "session": {"max_output_tokens": 10**20}},
            "max_output_tokens: expected at most 96",
        ),
        ({"type": "conversation.item.create", "item": {"type": "message"}}, "is required"),
        (
            {
                "type": "conversation.item.create",
                "item": {
                    "type": "message",
                    "role": "user",
                    "content": 2 * [{"type": "input_text", "text": "hello"}],
                },
            },
            "item.content: expected one text or one recording, got 2 parts",
        ),
        (sound_item(), "item.content.audio is required"),
        (sound_item(audio=""), "item.content.audio is required"),
        ({"type": "conversation.item.create"}, "item: expected a JSON object, got None"),
        ({"type": ["session.update"]}, "type: expected one of"),
    ],
)
def test_illegal_events(connection, event, message):
    connection.send({**event, "event_id": "mine"})
    error = connection.recv()
    assert error.type == "error" and error.error.event_id == "mine"
    assert message in error.error.message


def test_the_session_survives_errors(connection):
    frames = ["{", "[]", "[" * 100_000, b"{}", '{"type": "\\ud800"}']
    for frame in frames:
        connection.send_raw(frame)
    assert {connection.recv().type for _ in frames} == {"error"}
    connection.input_audio_buffer.clear()
    assert connection.recv().type == "input_audio_buffer.cleared"


def test_a_new_voice_within_a_turn_keeps_its_start(connection):
    """Other settings than those of the turn detection leave it running."""
    wav = np.concatenate([load_audio(QUESTION), np.zeros(16_000, np.float32)])
    half = len(wav) // 3
    append(connection, pcm(wav[:half]), 4800)
    started = until(connection, "input_audio_buffer.speech_started")
    connection.session.update(session={"type": "realtime", "audio": {"output": {"voice": "rms"}}})
    append(connection, pcm(wav[half:]), 4800)
    events = until(connection, "input_audio_buffer.committed")
    assert len(of_kind([*started, *events], "input_audio_buffer.speech_started")) == 1


def test_a_response_that_fails_leaves_the_question(connection, monkeypatch):
    by_hand(connection, output_modalities=["text"])
    content = [{"type": "input_text", "text": tiny.SUM}]
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    until(connection, "conversation.item.done")

    def full(self):
        raise ApiError(429, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Talker, "admitted", full)
        connection.response.create()
        assert until(connection, DONE)[-1].response.status == "failed"
    connection.response.create()
    assert until(connection, DONE)[-1].response.status == "completed"


def test_the_buffer_is_bounded(connection):
    by_hand(connection)
    append(connection, pcm(np.zeros(6 * 16_000, np.float32)), 48_000)
    assert connection.recv().type == "input_audio_buffer.cleared"
    assert "more than 5 s" in connection.recv().error.message


def test_large_events(connection):
    """They may be as large as a request, 1 MiB here; larger ones end the session."""
    by_hand(connection)
    append(connection, silence(15), 720_000)
    assert connection.recv().type == "input_audio_buffer.cleared"
    assert "more than 5 s" in connection.recv().error.message
    append(connection, silence(20), 960_000)
    with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
        connection.recv()
    assert closed.value.rcvd.code == 1009


def test_a_response_is_finished_when_the_server_stops(held):
    """A session without one ends at once."""
    with contextlib.ExitStack() as clients, contextlib.ExitStack() as stack:
        held.set()
        address = stack.enter_context(tiny.serving())
        held.clear()
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        busy, idle = (
            clients.enter_context(client.realtime.connect(model="tiny")) for _ in range(2)
        )
        content = [{"type": "input_text", "text": tiny.SUM}]
        busy.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        busy.response.create()
        until(busy, "response.output_audio_transcript.delta")
        stopping = threading.Thread(target=stack.close)
        stopping.start()
        for connection in (idle, busy):
            with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
                for event in iter(connection.recv, None):
                    last = event
            assert closed.value.rcvd.code == 1012
            held.set()
        stopping.join(10)
    assert last.type == DONE and last.response.status == "completed"
    assert last.response.output[0].content[0].transcript == tiny.SUM_ANSWER


def test_the_asynchronous_client(address):
    async def talk():
        url = f"{address}/v1"
        async with (
            openai.AsyncOpenAI(base_url=url, api_key="none") as client,
            client.realtime.connect(model="tiny") as connection,
        ):
            content = [{"type": "input_text", "text": tiny.SUM}]
            await connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": content}
            )
            await connection.response.create(response={"output_modalities": ["text"]})
            async for event in connection:
                if event.type == "response.output_text.done":
                    return event.text

    assert asyncio.run(talk()) == tiny.SUM_ANSWER


def test_another_model_is_refused(address, monkeypatch, caplog):
    """Which is no error of the server."""
    log = logging.getLogger("uvicorn.error")
    monkeypatch.setattr(log, "handlers", [*log.handlers, caplog.handler])
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    with pytest.raises(Exception, match="404"), client.realtime.connect(model="gpt"):
        pass
    assert tiny.is_ready(address)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [(FRIEND, True), ("https://enemy.example", False), ("http://[", False), (None, True)],
)
def test_pages_of_other_origins(address, origin, is_allowed):
    url = f"{address.replace('http', 'ws')}/v1/realtime"

    def first():
        with websockets.sync.client.connect(url, origin=origin) as connection:
            return json.loads(connection.recv())["type"]

    if is_allowed:
        assert first() == "session.created"
    else:
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            first()
        assert refused.value.response.status_code == 403


def test_sessions_before_the_warm_up_are_told_to_come_again(monkeypatch):
    warm = threading.Event()
    monkeypatch.setattr(Talker, "warm_up", lambda self: warm.wait())
    with tiny.serving(wait=False) as address:
        try:
            tiny.wait_for(lambda: tiny.status(address, "/healthz") == 200)
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
            with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
                client.realtime.connect(model="tiny").enter()
        finally:
            warm.set()
    response = refused.value.response
    assert response.status_code == 503 and response.headers["Retry-After"] == "5"
    assert "still being loaded" in json.loads(response.body)["error"]["message"]


def test_a_silent_session_ends(address, monkeypatch):
    """It has a place that others wait for."""
    monkeypatch.setattr(realtime, "IDLE_SECONDS", 1.0)
    with websockets.sync.client.connect(f"{address.replace('http', 'ws')}/v1/realtime") as session:
        assert json.loads(session.recv())["type"] == "session.created"
        for _ in range(2):  # Any event counts.
            time.sleep(0.6)
            session.send('{"type": "input_audio_buffer.clear"}')
            assert json.loads(session.recv())["type"] == "input_audio_buffer.cleared"
        event = json.loads(session.recv(timeout=5))
        assert event["type"] == "error" and event["error"]["code"] == "session_expired"
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
            session.recv(timeout=5)
    assert closed.value.rcvd.code == realtime.TIMEOUT_CODE


def test_a_session_has_a_longest_time():
    """Events don't make it longer."""
    limits = Limits(audio_seconds=5, session_seconds=0.6)
    with (
        tiny.serving(limits=limits) as address,
        websockets.sync.client.connect(f"{address.replace('http', 'ws')}/v1/realtime") as session,
    ):
        for _ in range(3):
            session.send('{"type": "input_audio_buffer.clear"}')
            event = json.loads(session.recv())
            time.sleep(0.1)
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
            while True:
                event = json.loads(session.recv(timeout=5))
    assert event["error"]["code"] == "session_expired"
    assert "lasted for 0.01 minutes, the longest time" in event["error"]["message"]
    assert closed.value.rcvd.code == realtime.TIMEOUT_CODE


def test_a_session_that_answers_is_not_silent(connection, monkeypatch):
    monkeypatch.setattr(realtime, "IDLE_SECONDS", 0.2)
    ask = Conversation.ask

    def slow(self, *args, **options):
        time.sleep(0.7)
        yield from ask(self, *args, **options)

    monkeypatch.setattr(Conversation, "ask", slow)
    content = [{"type": "input_text", "text": tiny.SUM}]
    item = {"type": "message", "role": "user", "content": content}
    connection.conversation.item.create(item=item)
    connection.response.create()
    assert until(connection, DONE)[-1].response.status == "completed"
