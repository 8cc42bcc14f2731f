"""Serves a trained model: OpenAI's API under /v1 and a page to talk with it.

    python -m speechgpt_jax.serve
    python -m speechgpt_jax.serve --run=runs/demo/stage3 --host=0.0.0.0 --ssl_certfile=cert.pem \\
        --ssl_keyfile=key.pem

The environment variable SPEECHGPT_API_KEY, if set, is the key that clients must send.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

from speechgpt_jax import arguments, compilation_cache
from speechgpt_jax.arguments import (
    at_least,
    define,
    existing_local_file,
    finite_float,
    key_in,
    nonempty,
    positive_float,
    positive_int,
)
from speechgpt_jax.decoding import flags as talk
from speechgpt_jax.errors import UserError
from speechgpt_jax.gin_utils import hush_libraries
from speechgpt_jax.serving import logs
from speechgpt_jax.serving.limits import LONGEST_AUDIO, Limits

HISTORY_TOKENS = talk.define_history_tokens()
MESH = talk.define_mesh()
flags.adopt_module_key_flags(talk)
flags.adopt_module_key_flags(compilation_cache)
HOST = define("host", nonempty, "127.0.0.1", "Address to listen at; 0.0.0.0: all of this host.")
PORT = define("port", at_least(1, at_most=65_535), 8000, "Port to listen at.")
MODEL_NAME = define(
    "model_name",
    nonempty,
    None,
    "Name of the model in the API; by default that of the run's folder.",
)
NUM_SLOTS = define("num_slots", positive_int, 8, "Requests that are answered at the same time.")
MAX_WAITING = define(
    "max_waiting", at_least(0), Limits.waiting, "Requests that may wait for a slot."
)
MAX_BODY_MB = define(
    "max_body_mb",
    finite_float(at_least=1 / 1024, at_most=2**20),
    Limits.body_bytes / 2**20,
    "Largest request or Realtime event, in MiB.",
)
MAX_AUDIO_SECONDS = define(
    "max_audio_seconds",
    finite_float(above=0, at_most=LONGEST_AUDIO),
    Limits.audio_seconds,
    "Longest recording.",
)
MAX_SECONDS = define(
    "max_seconds", positive_float, Limits.seconds, "Time for a request and its reply."
)
MAX_SESSION_MINUTES = define(
    "max_session_minutes",
    positive_float,
    Limits.session_seconds / 60,
    "Longest Realtime session.",
)
CORS_ORIGINS = flags.DEFINE_list(
    "cors_origins", [], "Origins of other pages that may call the API, with commas; *: all."
)
SSL_CERTFILE = define(
    "ssl_certfile", existing_local_file, None, "Certificate; then it serves https."
)
SSL_KEYFILE = define("ssl_keyfile", existing_local_file, None, "Key of the certificate.")
LOG_WORDS = flags.DEFINE_bool("log_words", False, "Log what is said, not only when and how long.")


def main() -> None:
    hush_libraries()
    if bool(SSL_CERTFILE.value) != bool(SSL_KEYFILE.value):
        raise UserError("Give both --ssl_certfile and --ssl_keyfile, or neither.")
    api_key = key_in("SPEECHGPT_API_KEY")
    logs.write_to_stderr()

    from speechgpt_jax.serving.server import check_certificate, check_port, run

    check_port(HOST.value, PORT.value)
    check_certificate(SSL_CERTFILE.value, SSL_KEYFILE.value)
    print("Loading the model ...", file=sys.stderr, flush=True)

    # Loads JAX, which takes seconds; wrong flags are reported before.
    from speechgpt_jax.serving.app import Options, create_app

    model = talk.load_speech_model(num_slots=NUM_SLOTS.value, devices=MESH.value)
    settings = talk.start_conversation(model, history_tokens=HISTORY_TOKENS.value)
    limits = Limits(
        body_bytes=int(MAX_BODY_MB.value * 2**20),
        audio_seconds=MAX_AUDIO_SECONDS.value,
        waiting=MAX_WAITING.value,
        seconds=MAX_SECONDS.value,
        session_seconds=60 * MAX_SESSION_MINUTES.value,
    )
    options = Options(
        MODEL_NAME.value or pathlib.Path(talk.RUN.value).resolve().name,
        api_key=api_key,
        cors_origins=CORS_ORIGINS.value,
        log_words=LOG_WORDS.value,
        limits=limits,
    )
    run(
        create_app(settings, options),
        host=HOST.value,
        port=PORT.value,
        certificate=SSL_CERTFILE.value,
        key=SSL_KEYFILE.value,
    )


if __name__ == "__main__":
    arguments.run_with_flags(main)
