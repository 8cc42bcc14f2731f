"""--engine: a conversation whose tokens another server writes, here our own and a foreign one."""

import contextlib
import http.server
import json
import threading

import httpx2
import numpy as np
import openai
import pytest

from speechgpt_jax.decoding import remote
from speechgpt_jax.decoding.conversation import Conversation, SpeechModel
from speechgpt_jax.decoding.masks import Masks, grammar
from speechgpt_jax.decoding.remote import EngineFailed, RemoteEngine
from speechgpt_jax.decoding.requests import Request
from speechgpt_jax.decoding.sampling import GREEDY, Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.serving import talker
from speechgpt_jax.speech.audio import load_audio
from tests.serving import tiny
from tests.serving.clips import QUESTION

pytestmark = pytest.mark.slow

MASKS = Masks(tiny.TOKENIZER)
PROMPT = tiny.TOKENIZER.encode_prompt("[Human]: hello")


@pytest.fixture(scope="module")
def engine(address):
    return RemoteEngine(f"{address}/v1", tiny.TOKENIZER, MASKS, context=256)


def test_a_conversation_is_the_same(address):
    here = tiny.speech_model()
    there = SpeechModel(
        f"{address}/v1", here.tokenizer, here.speech2unit, here.vocoder, context=256
    )
    for question in (tiny.SUM, load_audio(QUESTION)):
        replies = [
            Conversation(model, speaker="slt", max_new_tokens=96).answer(question)
            for model in (here, there)
        ]
        assert replies[0].text and replies[0].units
        assert replies[1].text == replies[0].text
        assert replies[1].transcript == replies[0].transcript
        assert replies[1].units == replies[0].units
        assert np.abs(replies[1].wav).max() > 0.01


def test_tokens_seeds_and_logprobs_are_those_of_the_engine(engine):
    drawn = Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    requests = [("units", drawn, 7), ("any", drawn, 3_000_000_000), ("text", GREEDY, 7)]
    for form, sampling, seed in requests:
        request = Request(
            PROMPT, 40, tiny.TOKENIZER.stop_ids, 5, sampling, seed, state=MASKS.start(form)
        )
        expected = tiny.speech_model().engine.submit(request)
        answer = engine.submit(request)
        assert list(answer) == list(expected)
        assert answer.finish_reason == expected.finish_reason


def test_a_cancelled_answer_frees_the_slot_there(address, engine):
    unlikely = Sampling(temperature=2.0, top_k=0, top_p=1.0)
    state = MASKS.start("any")  # The other forms end sooner, with most seeds this one doesn't.
    request = Request(PROMPT, 96, min_new_tokens=96, sampling=unlikely, seed=0, state=state)
    answer = engine.submit(request)
    next(iter(answer))  # Leaves the iteration.
    tiny.wait_for(lambda: engine.num_busy == 0)
    assert answer.finish_reason == "cancelled"
    tiny.wait_for(lambda: tiny.metric(address, "speechgpt_busy_slots") == 0)


def test_a_request_that_the_engine_refuses(engine):
    """Clients get its reason, and not its address."""
    answer = engine.submit(Request(PROMPT, 97, state=MASKS.start("any")))
    with pytest.raises(UserError, match="max_tokens: expected at most 96") as raised:
        list(answer)
    assert not isinstance(raised.value, EngineFailed) and "127.0.0.1" not in str(raised.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"structured_outputs": {"grammar": "start: /a/"}}, "expected the grammar of a form"),
        ({"prompt": [-1]}, "prompt.0: expected greater than or equal to 0, got -1"),
        ({"prompt": [10**6]}, "Token ids must lie in 0.."),
        ({"max_tokens": 97}, "max_tokens: expected at most 96, got 97"),
        ({"model": "gpt"}, "model: expected tiny, got 'gpt'"),
        ({"n": 2}, "n: expected 1, got 2"),
        ({"stop": ["a"]}, "stop: expected"),
        ({"logprobs": 2}, "logprobs: expected 0, since only tokens of the answer have"),
    ],
)
def test_impossible_completions(address, change, message):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3} | change
    reply = httpx2.post(f"{address}/v1/completions", json=body)
    assert reply.status_code in (400, 404)
    assert message in reply.json()["error"]["message"]


def test_a_long_prompt_is_tokenized_in_the_thread_of_the_reply(address, monkeypatch):
    """Meanwhile the event loop goes on with other requests."""
    threads, kind = [], type(tiny.TOKENIZER)
    encode_prompt = kind.encode_prompt

    def recorded(self, text):
        threads.append(threading.current_thread().name)
        return encode_prompt(self, text)

    monkeypatch.setattr(kind, "encode_prompt", recorded)
    body = {"model": "tiny", "prompt": "good morning, " * 150, "max_tokens": 3}
    for stream in (False, True):
        reply = httpx2.post(f"{address}/v1/completions", json=body | {"stream": stream})
        assert reply.status_code == 400 and "longer than the context" in reply.text
    assert len(threads) == 2 and all(name.startswith("reply") for name in threads)


def test_a_whole_completion(address):
    form = {"structured_outputs": {"grammar": grammar("units", tiny.TOKENIZER)}}
    body = {"model": "tiny", "prompt": "[Human]: hello", "max_tokens": 5, "temperature": 0} | form
    reply = httpx2.post(f"{address}/v1/completions", json=body).json()
    assert reply["usage"]["completion_tokens"] == 5
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["text"].startswith("<sosp> <")


def test_log_probabilities_of_a_completion(address):
    """Of units, and of any tokens: parts of characters too."""
    units = {"structured_outputs": {"grammar": grammar("units", tiny.TOKENIZER)}}
    drawn = {"temperature": 2.0, "top_k": 0, "min_tokens": 40}
    for options in (units, drawn):
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 40, "logprobs": 0}
        body["extra_body"] = {**options, "seed": 1, "return_token_ids": True}
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            (whole,) = client.completions.create(**body).choices
            stream = client.completions.create(**body, stream=True)
            chunks = [chunk.choices[0] for chunk in stream]
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert whole.text == tiny.TOKENIZER.decode(whole.token_ids)
        tokens, ids = whole.logprobs, whole.token_ids
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            streamed = [value for chunk in chunks for value in getattr(chunk.logprobs, name)]
            assert streamed == getattr(tokens, name) and len(streamed) == len(ids)
        assert tokens.top_logprobs == [
            {text: value} for text, value in zip(tokens.tokens, tokens.token_logprobs)
        ]
        # Tokens that share characters with others begin where the first of them does.
        is_byte = [tiny.TOKENIZER.is_byte(id_) for id_ in ids]
        shares = [a or b for a, b in zip([False, *is_byte], is_byte)]
        for text, place, is_shared in zip(tokens.tokens, tokens.text_offset, shares):
            assert is_shared or whole.text[place : place + len(text)] == text
        assert shares.count(False) > 5 and any(t.startswith("bytes:") for t in tokens.tokens) == (
            options is drawn
        )


@contextlib.contextmanager
def foreign_server(*choices, silent=None, is_good=lambda: True):
    """Address of a server that knows no masks and streams the given choices.

    Args:
      silent: "reply", it says nothing after them; "head", it says nothing at all; None: it ends.
      is_good: whether it streams the choices, else nothing.
    """
    stopped = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(json.dumps({"data": [{"id": "theirs"}]}))

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if silent == "head":
                stopped.wait()
            events = [json.dumps({"choices": [choice]}) for choice in choices * is_good()]
            ends = [] if silent else ["[DONE]"]
            self._answer("".join(f"data: {event}\n\n" for event in [*events, *ends]))

        def _answer(self, text):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())
            if silent and self.command == "POST":
                self.wfile.flush()
                stopped.wait()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_without_masks_can_not_break_the_form():
    sosp, unit, word = map(tiny.TOKENIZER.token_to_id, ("<sosp>", "<5>", "[Human]"))
    request = Request([1], 9, state=MASKS.start("units"))
    with foreign_server({"token_ids": [sosp, unit]}, {"token_ids": [unit, word, unit]}) as url:
        answer = RemoteEngine(url, tiny.TOKENIZER, MASKS).submit(request)
        assert [token.id for token in answer] == [sosp, unit, unit]
        assert answer.finish_reason == "stop"
    with foreign_server({"text": "only text"}) as url:
        answer = RemoteEngine(url, tiny.TOKENIZER, MASKS).submit(request)
        with pytest.raises(UserError, match="returns no token_ids"):
            list(answer)


def test_a_server_that_runs_another_model():
    request = Request([1], 9, state=MASKS.start("any"))
    with foreign_server({"token_ids": [10**6]}) as url:
        answer = RemoteEngine(url, tiny.TOKENIZER, MASKS).submit(request)
        with pytest.raises(UserError, match="1000000, which the tokenizer lacks"):
            list(answer)


def test_clients_may_try_again_if_the_engine_fails(caplog):
    """Its failure is not theirs: OpenAI's clients repeat what is answered by 503.

    That it gives no log-probabilities is no failure.
    """
    here = tiny.speech_model()
    body = {"model": "tiny", "messages": [{"role": "user", "content": tiny.SUM}]}
    is_good = True
    choice = {"token_ids": tiny.TOKENIZER.encode("hello"), "finish_reason": "stop"}
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(foreign_server(choice, is_good=lambda: is_good))
        there = SpeechModel(url, here.tokenizer, here.speech2unit, here.vocoder, context=256)
        with tiny.serving(model=there) as address:
            refusal = httpx2.post(f"{address}/v1/chat/completions", json=body | {"logprobs": True})
            is_good = False
            reply = httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=30)
            assert "broke off after 0 tokens" in caplog.text and tiny.is_ready(address)
            stack.close()
            gone = httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=30)
            assert f"{url}/completions can't be reached" in caplog.text
            assert tiny.status(address, "/readyz") == 503
    assert gone.status_code == 503 and gone.json() == reply.json()
    assert refusal.status_code == 400
    assert "logprobs: the server that writes the tokens gives none" in refusal.text
    assert reply.status_code == 503 and reply.headers["retry-after"] == "5"
    error = reply.json()["error"]
    assert error["type"] == "server_error"
    assert error["message"] == "The server that writes the tokens failed; try again."


@pytest.mark.parametrize("silent", ["head", "reply"])
def test_a_cancelled_answer_of_a_silent_server_ends_at_once(silent):
    """Its thread waits for the server, which may take a minute to be given up."""
    word = tiny.TOKENIZER.encode("hello")[0]
    with foreign_server({"token_ids": [word]}, silent=silent) as url:
        engine = RemoteEngine(url, tiny.TOKENIZER, MASKS, num_slots=1)
        answers = [engine.submit(Request([1], 9, state=MASKS.start("text"))) for _ in range(3)]
        tiny.wait_for(lambda: engine.num_busy == 1 and engine.num_waiting == 2)
        if silent == "reply":
            tiny.wait_for(lambda: any(answer.num_tokens for answer in answers))
        for answer in answers:
            answer.cancel()
        tiny.wait_for(lambda: engine.num_busy == engine.num_waiting == 0, seconds=1)
        assert [answer.finish_reason for answer in answers] == 3 * ["cancelled"]


def test_a_client_that_leaves_a_silent_server_frees_the_slot():
    here = tiny.speech_model()
    with foreign_server(silent="reply") as url:
        there = SpeechModel(url, here.tokenizer, here.speech2unit, here.vocoder, context=256)
        answer = there.engine.submit(Request([1], 9, state=MASKS.start("text")))
        threading.Timer(0.2, answer.cancel).start()
        assert list(answer) == [] and answer.finish_reason == "cancelled"


def test_the_server_is_ready_when_the_other_one_has_answered(monkeypatch, caplog):
    monkeypatch.setattr(talker, "_RETRY_SECONDS", 0.1)
    here, is_good = tiny.speech_model(), False
    with foreign_server({"finish_reason": "stop"}, is_good=lambda: is_good) as url:
        there = SpeechModel(url, here.tokenizer, here.speech2unit, here.vocoder, context=256)
        with tiny.serving(model=there, wait=False) as address:
            tiny.wait_for(lambda: "broke off after 0 tokens" in caplog.text)
            assert tiny.status(address, "/readyz") == 503
            is_good = True
            tiny.wait_for(lambda: tiny.is_ready(address))


def test_a_server_that_waits_for_the_other_one_stops_at_once(monkeypatch, caplog):
    """Not when the other one has been silent for too long, which is logged."""
    monkeypatch.setattr(remote, "_SECONDS", 4)
    here = tiny.speech_model()
    with foreign_server(silent="head") as url:
        there = SpeechModel(url, here.tokenizer, here.speech2unit, here.vocoder, context=256)
        with tiny.serving(model=there, wait=False) as address:
            tiny.wait_for(lambda: there.engine.num_busy == 1)
            assert tiny.status(address, "/readyz") == 503
    assert "engine_failed" not in caplog.text


def test_no_server():
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1/models can't be reached"):
        RemoteEngine("http://127.0.0.1:9/v1", tiny.TOKENIZER, MASKS)
    with pytest.raises(UserError, match=r"can't be reached .* expected a server with OpenAI's API"):
        RemoteEngine("nowhere", tiny.TOKENIZER, MASKS)
    with pytest.raises(UserError, match="can't be reached"):
        RemoteEngine("http://127.0.0.1:abc/v1", tiny.TOKENIZER, MASKS)


def test_a_server_that_breaks_off_an_answer_is_an_error():
    request = Request([1], 9, state=MASKS.start("text"))
    word = tiny.TOKENIZER.encode("hello")[0]
    with foreign_server({"token_ids": [word]}) as url:
        answer = RemoteEngine(url, tiny.TOKENIZER, MASKS).submit(request)
        with pytest.raises(UserError, match="broke off after 1 tokens of an answer"):
            list(answer)
    with foreign_server({"token_ids": [word], "finish_reason": "length"}) as url:
        answer = RemoteEngine(url, tiny.TOKENIZER, MASKS).submit(request)
        assert [token.id for token in answer] == [word]
        assert answer.finish_reason == "length"
