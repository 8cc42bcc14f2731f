"""Load of the server: many clients at once, hostile requests, and a long run.

    python -m tests.benchmarks.bench_serve load --seconds=60 --clients 1 16
    python -m tests.benchmarks.bench_serve hostile --requests=500
    python -m tests.benchmarks.bench_serve soak --soak_minutes=30

The server runs in a process of its own, with the tiny model of the tests, whose answers are known
(every one is compared), and a slot for each of 16 clients. Its clients, in this process, take turns
at four requests: a written question, a spoken one, a written one that is answered in speech, and
one whose answer is drawn at a temperature of 2, so that lengths differ. "first" is the time to the
first text or sound of a reply, in ms.
"""

import argparse
import asyncio
import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import numpy as np
import psutil
import soundfile

from speechgpt_jax import arguments
from speechgpt_jax.arguments import positive_float, positive_int
from speechgpt_jax.decoding.engine import SMALLEST_CACHE
from speechgpt_jax.serving.server import HEAD_SECONDS
from tests.benchmarks import docs_table
from tests.benchmarks.timing import percentile
from tests.serving import tiny
from tests.serving.clips import CLIP, QUESTION, input_audio

NUM_SLOTS = 16


@contextlib.contextmanager
def server() -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a server."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,))
    process.start()
    try:
        yield here.recv(), psutil.Process(process.pid)
    finally:
        here.send(None)
        process.join()


def _serve(pipe):
    with tiny.serving(model=tiny.speech_model(NUM_SLOTS, SMALLEST_CACHE)) as address:
        pipe.send(address)
        pipe.recv()


# ---- load ----------------------------------------------------------------------------------------


class Counts:
    """Counts of replies and errors of one run's clients."""

    def __init__(self):
        self.tokens = self.replies = self.errors = self.wrong_answers = 0
        self.first_text: list[float] = []
        self.first_sound: list[float] = []


def bodies() -> Iterator[tuple[dict, str | None]]:
    """Requests, and the answers that are known."""
    aloud = {"modalities": ["text", "audio"], "audio": {"voice": "slt", "format": "pcm16"}}
    drawn = {"temperature": 2.0, "top_p": 1.0, "top_k": 0}
    rows = [
        ({"content": tiny.SUM}, {}, tiny.SUM_ANSWER),
        ({"content": [input_audio(QUESTION.read_bytes())]}, aloud, CLIP["answer"]),
        ({"content": tiny.SUM}, aloud, tiny.SUM_ANSWER),
        ({"content": tiny.SUM}, drawn, None),
    ]
    for message, options, answer in itertools.cycle(rows):
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        messages = [{"role": "user", **message}]
        yield {"model": "tiny", "messages": messages, **stream, **options}, answer


async def client(address: str, number: int, end: float, counts: Counts) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        for body, answer in itertools.islice(bodies(), number % 4, None):
            if time.monotonic() > end:
                return
            try:
                text = await _ask(http, address, body, counts)
            except (httpx2.HTTPError, AssertionError, KeyError):
                counts.errors += 1
                continue
            counts.replies += 1
            counts.wrong_answers += answer is not None and text != answer


async def _ask(http, address, body, counts) -> str:
    start, text, has_sound = time.monotonic(), "", False
    async with http.stream("POST", f"{address}/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if usage := event.get("usage"):
                counts.tokens += usage["completion_tokens"]
            delta = event["choices"][0]["delta"] if event["choices"] else {}
            if (delta.get("content") or delta.get("question")) and not text:
                counts.first_text.append(time.monotonic() - start)
            text += delta.get("content", "")
            if delta.get("audio", {}).get("data") and not has_sound:
                has_sound = True
                counts.first_sound.append(time.monotonic() - start)
    return text


async def load(address: str, clients: int, seconds: float) -> Counts:
    """Lets clients ask for `seconds`, after one round of warming up."""
    await asyncio.gather(*(client(address, i, time.monotonic(), Counts()) for i in range(4)))
    counts, end = Counts(), time.monotonic() + seconds
    await asyncio.gather(*(client(address, i, end, counts) for i in range(clients)))
    return counts


def measure_load(args: argparse.Namespace) -> None:
    columns = ["clients", "tokens/s", "first text p95", "first sound p95", "errors", "MiB before"]
    table = docs_table.Table("serve", [*columns, "after"])
    with server() as (address, process):
        for clients in args.clients:
            before = process.memory_info().rss
            start = time.monotonic()
            counts = asyncio.run(load(address, clients, args.seconds))
            wall = time.monotonic() - start
            p95 = functools.partial(percentile, share=0.95)
            table.add(
                str(clients),
                f"{counts.tokens / wall:,.0f}",
                f"{1000 * p95(counts.first_text):.0f}",
                f"{1000 * p95(counts.first_sound):.0f}",
                str(counts.errors + counts.wrong_answers),
                f"{before / 2**20:,.0f}",
                f"{process.memory_info().rss / 2**20:,.0f}",
            )
    if args.update_docs:
        table.update_docs()


def measure_soak(args: argparse.Namespace) -> None:
    """A long load by eight clients, after half a minute that lets the memory settle."""
    columns = ["soak", "replies", "errors", "MiB before", "at half time", "after"]
    table = docs_table.Table("serve_soak", columns)
    memory = []
    with server() as (address, process):
        asyncio.run(load(address, 8, 30))
        memory.append(process.memory_info().rss)
        replies = errors = 0
        for _ in range(2):
            counts = asyncio.run(load(address, 8, 30 * args.soak_minutes))
            replies += counts.replies
            errors += counts.errors + counts.wrong_answers
            memory.append(process.memory_info().rss)
    sizes = [f"{size / 2**20:,.0f}" for size in memory]
    table.add(f"{args.soak_minutes:g} min, 8 clients", f"{replies:,}", str(errors), *sizes)
    if args.update_docs:
        table.update_docs()


# ---- hostile requests ----------------------------------------------------------------------------


@functools.cache
def much_work() -> list[bytes]:
    """Uploads that cost far more work or memory than bytes, unless they are refused."""
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros((48_000, 255)), 48_000, "VORBIS", format="OGG")
    sun = b".snd\0\0\0\x18" + bytes(7) + b"\x03\0\0\x3e\x80\0\0\0\x01"
    signatures = b"#!AMR\n", b"fLaC\0\0\0\x22", b"RIFF\4\0\0\0WAVE", sun
    return [silence.getvalue(), *(500_000 // len(mark) * mark for mark in signatures)]


def hostile(rng: random.Random) -> dict:
    """Arguments of a request that a server must refuse."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    noise = rng.randbytes(rng.choice([0, 1, 100, 10_000, 900_000]))
    recording = bytearray(QUESTION.read_bytes())
    for _ in range(30):
        recording[rng.randrange(len(recording))] = rng.randrange(256)
    upload = rng.choice(much_work())
    part = input_audio(rng.choice([recording, upload]))
    bodies = [
        noise,
        b"[" * rng.randrange(1, 10**6),
        b" " * 2 * 2**20,
        json.dumps({**chat, "model": "../../etc/passwd"}).encode(),
        json.dumps({**chat, "max_tokens": 10**9}).encode(),
        json.dumps({**chat, "temperature": "hot"}).encode(),
        json.dumps({**chat, "messages": [{"role": "user", "content": [part]}]}).encode(),
    ]
    form = {"data": {"model": "tiny"}, "files": {"file": noise}}
    return rng.choice(
        [
            *({"url": "/v1/chat/completions", "content": body} for body in bodies),
            {"url": "/v1/audio/transcriptions", **form},
            {"url": "/v1/audio/transcriptions", **form, "files": {"file": upload}},
            {"url": "/v1/audio/transcriptions", "content": noise},
            {"url": "/v1/audio/speech", "json": {"model": "tiny", "voice": "slt", "input": ""}},
            {"url": f"/v1/{'../' * 9}etc/passwd", "content": b""},
        ]
    )


async def cut(address: str, body: dict) -> None:
    """A client that leaves after the first bytes of its stream."""
    async with (
        httpx2.AsyncClient(base_url=address, timeout=30) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as reply,
    ):
        async for _ in reply.aiter_bytes():
            break


async def dribble(address: str) -> None:
    """A client whose second request comes byte by byte, until its connection is closed."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    with contextlib.closing(writer), contextlib.suppress(OSError):
        head = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
        writer.write(head + b"\r\n")
        await reader.readuntil(b"ok\n")
        writer.write(head)
        async with asyncio.timeout(HEAD_SECONDS + 5):
            while not reader.at_eof():
                writer.write(b"A: b\r\n")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.5)


async def attack(address: str, requests: int) -> list[float]:
    """Sends hostile requests, sixteen at a time; returns the seconds until each was refused.

    Meanwhile a tenth as many streams are cut, and as many connections dribble.
    """
    rng, gate = random.Random(0), asyncio.Semaphore(16)

    async def one(arguments):
        async with gate, httpx2.AsyncClient(base_url=address, timeout=30) as http:
            start = time.monotonic()
            with contextlib.suppress(httpx2.WriteError, httpx2.ReadError):
                reply = await http.post(**arguments)
                assert 400 <= reply.status_code < 500, (arguments["url"], reply.status_code)
            return time.monotonic() - start

    few = requests // 10
    streams = [body for body, _ in itertools.islice(bodies(), few)]
    dribbling = asyncio.gather(*(dribble(address) for _ in range(few)))
    refused = [one(hostile(rng)) for _ in range(requests)]
    seconds, _ = await asyncio.gather(asyncio.gather(*refused), _in_turn(address, streams))
    await dribbling
    return seconds


async def _in_turn(address: str, streams: list[dict]) -> None:
    for body in streams:
        await cut(address, body)


def measure_hostile(args: argparse.Namespace) -> None:
    table = docs_table.Table("serve_hostile", ["requests", "slowest, s", "MiB before", "after"])
    with server() as (address, process):
        asyncio.run(load(address, 4, 1))
        before = process.memory_info().rss
        seconds = asyncio.run(attack(address, args.requests))
        after = process.memory_info().rss
        counts = asyncio.run(load(address, 4, 1))
        assert counts.replies and not counts.errors and not counts.wrong_answers
        sizes = f"{before / 2**20:,.0f}", f"{after / 2**20:,.0f}"
        table.add(f"{len(seconds)}, then good ones answered", f"{max(seconds):.2f}", *sizes)
    if args.update_docs:
        table.update_docs()


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("what", choices=["load", "soak", "hostile"], help="what to measure")
    parser.add_argument("--seconds", type=positive_float, default=60.0, help="time of the load")
    parser.add_argument(
        "--clients", type=positive_int, nargs="+", default=[1, 16], help="numbers of clients"
    )
    parser.add_argument(
        "--soak_minutes", type=positive_float, default=30.0, help="time of the soak"
    )
    parser.add_argument("--requests", type=positive_int, default=500, help="hostile requests")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    measures = {"load": measure_load, "soak": measure_soak, "hostile": measure_hostile}
    measures[args.what](args)


if __name__ == "__main__":
    arguments.run(main)
