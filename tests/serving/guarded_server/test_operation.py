"""Operation of the server: keys, limits, health, metrics, logs."""

import concurrent.futures
import contextlib
import http.client
import json
import logging
import socket
import subprocess
import threading
import time
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
import websockets.exceptions
import websockets.sync.client

from speechgpt_jax.decoding.conversation import Conversation
from speechgpt_jax.decoding.remote import EngineFailed
from speechgpt_jax.errors import UserError
from speechgpt_jax.serving import app, audio_api, chat_completions, realtime, server, sound
from speechgpt_jax.serving.app import Options, create_app
from tests.compilations import compiled_programs
from tests.processes import free_port
from tests.serving import tiny
from tests.serving.clips import CLIP, QUESTION, input_audio
from tests.serving.guarded_server.guarded import BODY, KEY, ORIGIN, answer, post

pytestmark = pytest.mark.slow


# ---- who may call, and how much ------------------------------------------------------------------


def test_the_key_is_asked_for(address, client):
    assert answer(client) == tiny.SUM_ANSWER
    headers = {"Authorization": f"bearer  {KEY}"}  # The scheme has no case.
    assert httpx2.get(f"{address}/v1/models", headers=headers).status_code == 200
    for key in ("wrong", "secret2", "Secret"):
        other = client.with_options(api_key=key)
        with pytest.raises(openai.AuthenticationError, match="API key is wrong") as raised:
            other.models.list()
        assert raised.value.code == "invalid_api_key"
    for path in ("/", "/healthz", "/readyz", "/metrics", "/page/page.js"):
        assert httpx2.get(f"{address}{path}").status_code == 200


def test_the_realtime_key(client):
    with client.realtime.connect(model="tiny") as connection:
        assert connection.recv().type == "session.created"
    with (
        pytest.raises(websockets.exceptions.InvalidStatus) as refused,
        client.with_options(api_key="wrong").realtime.connect(model="tiny"),
    ):
        pass
    response = refused.value.response
    assert response.status_code == 401
    assert "API key is wrong" in json.loads(response.body)["error"]["message"]


def test_other_pages(address):
    for origin, allowed in [(ORIGIN, ORIGIN), ("https://enemy.example", None)]:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        reply = httpx2.options(f"{address}/v1/chat/completions", headers=headers)
        assert reply.headers.get("access-control-allow-origin") == allowed
    reply = httpx2.get(f"{address}/v1/models", headers={"Origin": ORIGIN})
    assert reply.status_code == 401 and reply.headers["access-control-allow-origin"] == ORIGIN


def test_large_bodies_are_refused(address, client):
    with pytest.raises(openai.APIStatusError, match="more than 200000 bytes") as raised:
        client.audio.speech.create(model="tiny", voice="slt", input="a" * 300_000)
    assert raised.value.status_code == 413
    # Without a stated length, reading stops at the limit.
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 100_000
            yield b" " * 100_000

    with contextlib.suppress(httpx2.TransportError):  # It was still sending.
        assert post(address, content=endless()).status_code == 413
    assert sent < 50_000_000


def test_a_client_that_sends_a_large_body_to_its_end_gets_the_error(address):
    """It reads nothing before: a connection closed meanwhile would be reset."""
    place, body = urlsplit(address), b" " * 8_000_000
    lengths = [f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"]
    for length in lengths:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n"
        with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
            connection.sendall(f"{head}{length}\r\n\r\n".encode())
            is_chunked = length == lengths[1]
            sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
            for start in range(0, len(sent), 1_000_000):
                connection.sendall(sent[start : start + 1_000_000])
                time.sleep(0.02)
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            error = json.loads(reply.read())["error"]
        assert reply.status == 413 and reply.headers["connection"] == "close"
        assert error["message"].startswith("The body has more than 200000 bytes")
        assert set(error) == {"message", "type", "param", "code"}


def test_a_client_that_asks_first_sends_no_large_body(address):
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n"
            b"Expect: 100-continue\r\nContent-Length: 8000000\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_too_many_requests(address, client):
    """All four slots are taken and nobody may wait."""
    options = {"temperature": 2.0, "top_p": 1.0, "extra_body": {"top_k": 0}}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(client.chat.completions.create, **BODY, **options) for _ in range(12)]
        errors = [call.exception() for call in calls]
    refused = [error for error in errors if error]
    assert refused and len(refused) < 12
    for error in refused:
        assert isinstance(error, openai.RateLimitError)
        assert int(error.response.headers["retry-after"]) >= 1
        assert "try again in" in error.body["message"]


def test_unknown_paths_and_methods(address):
    for method, path, status in [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/page/../app.py", 404),
        ("GET", "/etc/passwd", 404),
    ]:
        reply = httpx2.request(
            method, f"{address}{path}", headers={"Authorization": "Bearer secret"}
        )
        assert reply.status_code == status
        assert reply.headers.get("allow") == ("POST" if status == 405 else None)
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_sessions_at_unknown_paths(address):
    for path in ("/v1/nothing", "/v1/models", "/nothing"):
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            websockets.sync.client.connect(
                f"{address.replace('http', 'ws')}{path}",
                additional_headers={"Authorization": "Bearer secret"},
            )
        assert refused.value.response.status_code == 404
        assert path in json.loads(refused.value.response.body)["error"]["message"]


# ---- health, metrics, logs -----------------------------------------------------------------------


def test_metrics_count(address, client):
    name = 'speechgpt_requests_total{route="/v1/chat/completions",status="200"}'
    answer(client)
    before = tiny.metric(address, name)
    tokens = 'speechgpt_tokens_total{kind="completion"}'
    tokens_before = tiny.metric(address, tokens)
    usage = client.chat.completions.create(**BODY).usage
    assert tiny.metric(address, name) == before + 1
    assert tiny.metric(address, tokens) == tokens_before + usage.completion_tokens
    # A prompt that was read before counts as cached, in whole chunks of 128 tokens.
    long = BODY | {"messages": [{"role": "user", "content": "good morning, " * 45}]}
    usages = [client.chat.completions.create(**long).usage for _ in range(2)]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
    assert cached == [0, (usages[1].prompt_tokens - 1) // 128 * 128] and cached[1] > 0
    assert tiny.metric(address, 'speechgpt_tokens_total{kind="cached_prompt"}') == cached[1]
    client.audio.speech.create(model="tiny", voice="slt", input=tiny.GREETING)
    assert tiny.metric(address, "speechgpt_first_sound_seconds_count") >= 1
    assert tiny.metric(address, "speechgpt_slots") == 4


def test_logs_hold_no_words(client, caplog):
    with caplog.at_level(logging.INFO, "speechgpt_jax.serving"):
        answer(client)
        tiny.wait_for(lambda: caplog.messages)
    line = json.loads(caplog.messages[-1])
    assert line["route"] == "/v1/chat/completions" and line["status"] == 200
    assert line["request_id"].startswith("req_") and line["seconds"] > 0
    assert "five" not in caplog.text and "two" not in caplog.text


@contextlib.contextmanager
def logged(caplog):
    """The JSON lines of the server's log, once there is one."""
    lines = []
    with caplog.at_level(logging.INFO, "speechgpt_jax.serving"):
        yield lines
        tiny.wait_for(lambda: any('"request"' in line for line in caplog.messages))
    lines += [json.loads(line) for line in caplog.messages if '"request"' in line]


def session_with_an_answer(address, **options):
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as client,
        client.realtime.connect(model="tiny") as connection,
    ):
        content = [{"type": "input_text", "text": tiny.SUM}]
        item = {"type": "message", "role": "user", "content": content}
        connection.conversation.item.create(item=item)
        connection.response.create()
        while connection.recv().type != "response.done":
            pass


def test_realtime_sessions_are_counted_and_logged(address, caplog):
    before = tiny.metric(address, "speechgpt_replies")
    with logged(caplog) as lines:
        session_with_an_answer(address)
    (line,) = lines
    assert line["route"] == "/v1/realtime" and line["status"] == 101 and line["seconds"] > 0
    assert line["responses"] == {"completed": 1} and "five" not in caplog.text
    name = 'speechgpt_requests_total{route="/v1/realtime",status="101"}'
    assert tiny.metric(address, name) >= 1 and tiny.metric(address, "speechgpt_replies") == before


def test_refused_and_idle_sessions_are_logged(address, client, caplog, monkeypatch):
    with (
        logged(caplog) as lines,
        pytest.raises(websockets.exceptions.InvalidStatus),
        client.with_options(api_key="wrong").realtime.connect(model="tiny"),
    ):
        pass
    assert [line["status"] for line in lines] == [401]
    caplog.clear()
    monkeypatch.setattr(realtime, "IDLE_SECONDS", 0.1)
    with logged(caplog) as lines, client.realtime.connect(model="tiny") as connection:
        assert [connection.recv().type for _ in range(2)] == ["session.created", "error"]
    assert [line["status"] for line in lines] == [408]


def test_the_words_of_a_session_are_logged_if_asked_for(caplog):
    with tiny.serving(log_words=True) as address, logged(caplog) as lines:
        caplog.clear()
        session_with_an_answer(address)
        tiny.wait_for(lambda: "/v1/realtime" in caplog.text)
    line = next(line for line in lines if line["route"] == "/v1/realtime")
    assert line["turns"] == [{"question": tiny.SUM, "answer": tiny.SUM_ANSWER}]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/speech"])
def test_an_error_within_a_stream_is_counted_and_logged_as_one(address, monkeypatch, caplog, path):
    class Broken(sound.Encoder):
        def finish(self):
            raise EngineFailed("the engine is gone")

    monkeypatch.setattr(chat_completions, "Encoder", Broken)
    monkeypatch.setattr(audio_api, "Encoder", Broken)
    body = BODY | {"modalities": ["text", "audio"], "audio": {"voice": "slt", "format": "pcm16"}}
    if path == "/v1/audio/speech":
        body = {"model": "tiny", "voice": "slt", "input": tiny.GREETING, "response_format": "wav"}
    name = f'speechgpt_requests_total{{route="{path}",status="503"}}'
    with logged(caplog) as lines, contextlib.suppress(httpx2.RemoteProtocolError):
        assert post(address, path, json=body | {"stream": True}).status_code == 200
    assert [line["status"] for line in lines] == [503]
    assert tiny.metric(address, name) == 1


def test_readiness_follows_the_warm_up():
    """Health is answered at once; requests are told to come again, until all is compiled."""
    with tiny.serving(wait=False, log_words=True) as address:
        tiny.wait_for(lambda: tiny.status(address, "/healthz") == 200)
        if tiny.status(address, "/readyz") == 503:
            reply = post(address, json=BODY)
            assert reply.status_code in (200, 503)
            assert reply.status_code == 200 or reply.headers["retry-after"]
        tiny.wait_for(lambda: tiny.status(address, "/readyz") == 200, seconds=180)
        assert post(address, json=BODY).status_code == 200


def test_the_address_that_is_printed():
    assert server.url("127.0.0.1", 80, is_secure=False) == "http://127.0.0.1:80/"
    assert server.url("::1", 8000, is_secure=True) == "https://[::1]:8000/"


def test_the_end_does_not_wait_for_the_compiler(monkeypatch):
    compiled = threading.Event()
    monkeypatch.setattr(app, "_WARM_UP_END_SECONDS", 0.1)
    monkeypatch.setattr(tiny.speech_model(), "warm_up", lambda seconds: compiled.wait())
    try:
        with tiny.serving(wait=False) as address:
            tiny.wait_for(lambda: tiny.status(address, "/readyz") == 503)
            start = time.monotonic()
        assert time.monotonic() - start < 2
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "warm-up")
        assert thread.daemon
    finally:
        compiled.set()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB\n more"), r"memory is full \(RESOURCE_\w+: 9 GB\)"),
        (ZeroDivisionError("by zero"), r"can't be warmed up \(by zero\); the traceback is in"),
        (UserError("the engine's server is gone"), "^the engine's server is gone$"),
    ],
)
def test_a_failed_warm_up_ends_the_server(error, message, monkeypatch, caplog):
    """Its command then ends with this line and code 1, so that it can be restarted."""

    def fail(seconds):
        raise error

    model = tiny.speech_model()
    monkeypatch.setattr(model, "warm_up", fail)
    served = create_app(Conversation(model), Options("tiny"))
    with pytest.raises(UserError, match=message):
        server.run(served, host="127.0.0.1", port=free_port(), certificate=None, key=None)
    has_traceback = [record for record in caplog.records if record.exc_info]
    assert bool(has_traceback) == isinstance(error, ZeroDivisionError)


def test_a_spoken_question_after_the_warm_up_compiles_nothing(address):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [input_audio(QUESTION.read_bytes())]}],
        "modalities": ["text", "audio"],
        "audio": {"voice": "slt", "format": "wav"},
    }
    with compiled_programs() as compiled:
        assert post(address, json=body).status_code == 200
    assert not compiled


# ---- curl ----------------------------------------------------------------------------------------


def curl(*arguments):
    command = ["curl", "-sS", "-H", "Authorization: Bearer secret", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_curl(address, tmp_path):
    url = f"{address}/v1"
    assert json.loads(curl(f"{url}/models"))["data"][0]["id"] == "tiny"
    reply = json.loads(curl(f"{url}/chat/completions", "-d", json.dumps(BODY)))
    assert reply["choices"][0]["message"]["content"] == tiny.SUM_ANSWER
    form = ["-F", "model=tiny", "-F", f"file=@{QUESTION}", "-F", "response_format=text"]
    assert curl(f"{url}/audio/transcriptions", *form).decode() == CLIP["text"] + "\n"
    speech = {"model": "tiny", "voice": "slt", "input": tiny.GREETING}
    file = tmp_path / "speech.mp3"
    curl(f"{url}/audio/speech", "-d", json.dumps(speech), "-o", file)
    assert tiny.is_sound(sound.decode(file.read_bytes(), 60), (0.1, 4))
    wrong = ["-d", json.dumps({**BODY, "model": "other"}), "-w", "%{http_code}"]
    reply = curl(f"{url}/chat/completions", *wrong)
    error = json.loads(reply[:-3])["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert reply[-3:] == b"404"
    stream = curl("-N", f"{url}/chat/completions", "-d", json.dumps({**BODY, "stream": True}))
    assert stream.decode().endswith("data: [DONE]\n\n")
