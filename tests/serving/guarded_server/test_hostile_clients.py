"""Hostile and slow clients: each is answered or closed, and the next good request served."""

import contextlib
import http.client
import io
import json
import logging
import random
import socket
import threading
import time
from urllib.parse import urlsplit

import av
import httpx2
import numpy as np
import openai
import pytest
import soundfile

from speechgpt_jax.serving import server, sound
from speechgpt_jax.serving.limits import Limits
from tests.serving import tiny
from tests.serving.clips import QUESTION, input_audio
from tests.serving.guarded_server.guarded import BODY, ORIGIN, answer, post

pytestmark = pytest.mark.slow


JUNK = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"model": "tiny"}',
    b'{"model": ["tiny"], "messages": "a"}',
    b'{"model": "../../etc/passwd", "messages": [{"role": "user", "content": "a"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": {"type": "text"}}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1e30}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 10000000}',
    b'{"model": "tiny", "input": "a", "messages": [{"role": "user", "content": "a%s"}]}'
    % (b" " * 150_000),
    b'{"model": "tiny", "input": "a", "messages": [{"role": "user", "content": [%s{}]}]}'
    % (b'{"type": "x"}, ' * 10_000),
    b"[" * 100_000,
    b'{"messages": ' * 10_000,
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/speech"])
@pytest.mark.parametrize("body", JUNK, ids=range(len(JUNK)))
def test_junk_is_answered_with_a_message(address, path, body):
    reply = post(address, path, content=body)
    assert 400 <= reply.status_code < 500
    assert reply.json()["error"]["message"]


def test_random_bytes_as_recordings(address, client):
    random.seed(0)
    data = bytearray(QUESTION.read_bytes())
    for _ in range(8):
        for _ in range(20):
            data[random.randrange(len(data))] = random.randrange(256)
        # Some damage can't be told from sound.
        with contextlib.suppress(openai.BadRequestError):
            client.audio.transcriptions.create(model="tiny", file=bytes(data))
    for size in (1, 10, 1000):
        with pytest.raises(openai.BadRequestError):
            client.audio.transcriptions.create(model="tiny", file=random.randbytes(size))
    assert answer(client) == tiny.SUM_ANSWER


def test_recordings_that_are_much_work_are_refused_undecoded(address, client, monkeypatch):
    """Thousands of recordings in one file, and silence in hundreds of channels."""

    def decode(*_, **__):
        pytest.fail("it is decoded")

    silence = io.BytesIO()
    soundfile.write(silence, np.zeros((48_000, 255)), 48_000, "VORBIS", format="OGG")
    monkeypatch.setattr(soundfile.SoundFile, "read", decode)
    monkeypatch.setattr(av, "open", decode)
    for data, message in [
        (b"#!AMR\n" * 30_000, "holds more than 64 recordings"),
        (silence.getvalue(), "has 255 channels; expected at most 32"),
    ]:
        with pytest.raises(openai.BadRequestError, match=message):
            client.audio.transcriptions.create(model="tiny", file=data)
    monkeypatch.undo()
    assert answer(client) == tiny.SUM_ANSWER


@pytest.mark.parametrize("route", ["transcriptions", "completions"])
def test_a_client_that_leaves_while_its_recording_is_decoded(address, monkeypatch, route):
    """Its place among the replies and the thread that decodes are free soon after."""
    ended = threading.Event()

    def decode(data, max_seconds, checkpoint):
        try:
            while True:
                checkpoint()
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(sound, "decode", decode)
    content = [{"role": "user", "content": [input_audio(b"a")]}]
    with pytest.raises(httpx2.ReadTimeout):
        if route == "transcriptions":
            form = {"data": {"model": "tiny"}, "files": {"file": b"a"}}
            post(address, "/v1/audio/transcriptions", timeout=0.5, **form)
        else:
            post(address, timeout=0.5, json={"model": "tiny", "messages": content})
    tiny.wait_for(lambda: tiny.metric(address, "speechgpt_replies") == 0, seconds=2)
    assert ended.wait(2)


def test_forms_that_are_cut_off(address):
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": "Bearer secret"}
    for body in (
        b"",
        b"--x",
        b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
        b"-" * 999,
    ):
        url = f"{address}/v1/audio/transcriptions"
        reply = httpx2.post(url, content=body, headers=headers)
        assert reply.status_code == 400, reply.text


def test_connections_that_send_nothing_are_closed(address, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    place = urlsplit(address)
    for head in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"):
        with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
            connection.sendall(head)
            assert _is_closed(connection)


def test_the_time_for_a_head_begins_with_every_request(address, monkeypatch):
    """One that comes byte by byte after a first request held its connection for good."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.0)
    place = urlsplit(address)
    whole = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
        for half in (len(whole), len(whole) // 2, 1):  # Heads that end in time are answered.
            connection.sendall(whole[:half])
            time.sleep(0.1)
            connection.sendall(whole[half:])
            assert b"200 OK" in connection.recv(4096)
        time.sleep(1.2)  # Nothing at all may take longer.
        connection.sendall(whole[:-2])
        with pytest.raises(OSError):  # Closed before the last of these lines.
            for _ in range(60):
                connection.sendall(b"A: b\r\n")
                time.sleep(0.05)


def test_the_rest_of_a_refused_body_has_its_time(address, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(server, "BODY_SECONDS", 2.0)
    place = urlsplit(address)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        for _ in range(5):
            connection.sendall(b"a")
            time.sleep(0.1)
        assert _is_closed(connection)


def test_too_many_connections(address, monkeypatch):
    """The refusal is one that clients understand and heed."""
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    place = urlsplit(address)
    tiny.wait_for(lambda: tiny.status(address, "/healthz") == 200)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection((place.hostname, place.port)))
        reply = httpx2.post(f"{address}/v1/chat/completions", json=BODY, headers={"Origin": ORIGIN})
    assert reply.status_code == 503 and reply.headers["retry-after"] == "5"
    assert reply.headers["connection"] == "close"
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    error = reply.json()["error"]
    assert error["type"] == "server_error" and "too many connections" in error["message"]
    tiny.wait_for(lambda: tiny.status(address, "/healthz") == 200)


def _is_closed(connection) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_clients_that_break_off_leave_nothing_behind(address, client):
    body = json.dumps({**BODY, "stream": True, "temperature": 2.0, "top_k": 0}).encode()
    place = urlsplit(address)
    for cut in (len(body), len(body) // 2):
        for _ in range(4):
            connection = http.client.HTTPConnection(place.hostname, place.port)
            connection.putrequest("POST", "/v1/chat/completions")
            connection.putheader("Authorization", "Bearer secret")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body[:cut])
            time.sleep(0.02)
            connection.sock.close()
        tiny.wait_for(lambda: tiny.metric(address, "speechgpt_busy_slots") == 0, seconds=1)
        tiny.wait_for(lambda: tiny.metric(address, "speechgpt_replies") == 0, seconds=1)
    assert answer(client) == tiny.SUM_ANSWER


def test_a_client_that_breaks_off_its_body_is_no_bug(address, caplog):
    place = urlsplit(address)
    with caplog.at_level(logging.INFO, "speechgpt_jax.serving"):
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n"
                b"Content-Length: 1000\r\n\r\n{"
            )
            tiny.wait_for(lambda: tiny.metric(address, "speechgpt_replies") == 1)
        tiny.wait_for(lambda: tiny.metric(address, "speechgpt_replies") == 0)
        tiny.wait_for(lambda: any('"status": 499' in line for line in caplog.messages))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_reply_that_takes_too_long():
    """Pages of friends may read the error."""
    limits = Limits(audio_seconds=5, seconds=0.001)
    with tiny.serving(limits=limits, cors_origins=[ORIGIN]) as address:
        reply = httpx2.post(f"{address}/v1/chat/completions", json=BODY, headers={"Origin": ORIGIN})
    assert reply.status_code == 408 and reply.headers["access-control-allow-origin"] == ORIGIN
    assert reply.json()["error"]["message"] == "The request took longer than 0.001 s."


def test_a_stream_that_takes_too_long(monkeypatch, caplog):
    """Its last event is the error; nothing is logged as a bug."""
    log = logging.getLogger("uvicorn.error")
    monkeypatch.setattr(log, "handlers", [*log.handlers, caplog.handler])
    worker, *_ = tiny.speech_model().engine._workers  # The others have no request.
    write, begun = worker._write_tokens, []

    def write_once():
        if not begun:
            begun.extend(worker._jobs)
            write()
        time.sleep(0.01)

    caplog.set_level(logging.INFO, "speechgpt_jax.serving")
    with tiny.serving(limits=Limits(audio_seconds=5, seconds=2)) as address:
        monkeypatch.setattr(worker, "_seconds_per_token", 1.0)  # So that it writes one token.
        monkeypatch.setattr(worker, "_write_tokens", write_once)
        url = f"{address}/v1/chat/completions"
        with httpx2.stream("POST", url, json=BODY | {"stream": True}, timeout=20) as reply:
            assert reply.status_code == 200
            events = [line for line in reply.iter_lines() if line]
        tiny.wait_for(lambda: '"status": 408' in caplog.text)
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
