"""Latency of the shipped model: from start to prompt, from a spoken question to the first sound.

    python -m tests.benchmarks.bench_first_sound --rounds=10

Both in processes of their own: the chat in a terminal, and the server,
asked by one client after its warm-up. A piece of sound is late if it arrives after all sound before
it has been played.
"""

import base64
import contextlib
import json
import os
import pty
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx2

from speechgpt_jax import arguments
from speechgpt_jax.arguments import positive_int
from speechgpt_jax.shipped import ASSETS
from tests import processes
from tests.benchmarks import docs_table
from tests.serving import tiny
from tests.serving.clips import input_audio

QUESTION = ASSETS / "corpus" / "clips" / "question-06200-rms.flac"  # 3.0 s
PCM16_BYTES_PER_SECOND = 2 * 24_000


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--rounds", type=positive_int, default=10, help="starts, and questions")
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    table = docs_table.Table("first_sound", ["seconds", "median", "longest"])
    _add(table, "start of the chat to its prompt", [start_to_prompt() for _ in range(args.rounds)])
    with server() as address:
        replies = [listen(address) for _ in range(args.rounds)]
    first, late = zip(*replies)
    _add(table, "spoken question of 3 s to the first sound", first)
    _add(table, "lateness of later sound", late)
    if args.update_docs:
        table.update_docs()


def _add(table, name, seconds):
    table.add(name, f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}")


def start_to_prompt() -> float:
    """Seconds until the chat in a terminal shows its prompt."""
    here, terminal = pty.openpty()
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "speechgpt_jax.chat"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "dumb"},
    )
    shown = b""
    try:
        while b"> " not in shown:
            ready, _, _ = select.select([here], [], [], 60)
            assert ready, f"no prompt after 60 s: {shown.decode()}"
            shown += os.read(here, 1024)
        return time.monotonic() - start
    finally:
        process.kill()
        process.wait()
        os.close(here)
        os.close(terminal)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Address of a server that is warm."""
    port = processes.free_port()
    command = [sys.executable, "-m", "speechgpt_jax.serve", f"--port={port}", "--model_name=tiny"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while not tiny.is_ready(address):
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def listen(address: str) -> tuple[float, float]:
    """Seconds to the first sound, and the largest lateness of a later piece."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [input_audio(QUESTION.read_bytes())]}],
        "modalities": ["text", "audio"],
        "audio": {"voice": "slt", "format": "pcm16"},
        "stream": True,
    }
    start, first, played, late = time.monotonic(), None, 0.0, 0.0
    url = f"{address}/v1/chat/completions"
    with httpx2.stream("POST", url, json=body, timeout=60) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            sound = choices and (choices[0]["delta"].get("audio") or {}).get("data")
            if sound:
                now = time.monotonic() - start
                first = now if first is None else first
                late = max(late, now - first - played)
                played += len(base64.b64decode(sound)) / PCM16_BYTES_PER_SECOND
    assert first is not None, "the reply has no sound"
    return first, late


if __name__ == "__main__":
    arguments.run(main)
