"""The command: a process that loads a run, serves https, and stops gracefully."""

import json
import os
import signal
import socket
import ssl
import subprocess

import openai
import pytest

from tests import processes
from tests.serving import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*command, *name, *files], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "answers"
    tiny.save_run(folder)
    return folder


def test_a_server_from_start_to_stop(run, certificate, tmp_path):
    """It answers over https with the key, and finishes what it answers after SIGTERM."""
    port = processes.free_port()
    files = [f"--ssl_{name}file={certificate}/{name}.pem" for name in ("cert", "key")]
    limits = ["--num_slots=2", "--context=256", "--max_new_tokens=96", "--max_audio_seconds=2"]
    flags = [f"--run={run}", f"--port={port}", *files, *limits]
    command = [processes.run_module, "speechgpt_jax.serve", *flags]
    process = processes.start(*command, output=tmp_path, SPEECHGPT_API_KEY="secret")
    trusted = ssl.create_default_context(cafile=certificate / "cert.pem")
    address = f"https://localhost:{port}"

    def is_ready():
        assert process.is_alive(), (tmp_path / "stderr").read_text()
        return tiny.is_ready(address, verify=trusted)

    tiny.wait_for(is_ready, seconds=120)
    http = openai.DefaultHttpxClient(verify=trusted)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", http_client=http)
    with socket.create_connection(("localhost", port)) as connection:
        trusted.wrap_socket(connection, server_hostname="localhost").sendall(b"junk\r\n\r\n")
    messages = [{"role": "user", "content": tiny.SUM}]
    stream = client.chat.completions.create(model="answers", messages=messages, stream=True)
    first = next(iter(stream))
    os.kill(process.pid, signal.SIGTERM)
    pieces = [chunk.choices[0].delta.content or "" for chunk in (first, *stream)]
    assert "".join(pieces) == tiny.SUM_ANSWER
    client.close()
    process.join(30)
    assert process.exitcode in (0, -signal.SIGTERM)
    errors = (tmp_path / "stderr").read_text()
    plain = [line for line in errors.splitlines() if not line.startswith("{")]
    assert [line.split()[0] for line in plain] == ["Loading", "Serving"], errors
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines if line.get("route") != "/readyz"] == [
        "ready",
        "uvicorn.error",
        "request",
    ]


def test_a_server_whose_model_is_sharded_over_two_devices(run, tmp_path):
    """It answers like the model on one device."""
    port = processes.free_port()
    flags = [f"--run={run}", f"--port={port}", "--mesh=2", "--num_slots=1", "--context=128"]
    flags += ["--max_new_tokens=32", "--max_audio_seconds=1"]
    command = [processes.run_module, "speechgpt_jax.serve", *flags]
    devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    process = processes.start(*command, output=tmp_path, XLA_FLAGS=devices)
    address = f"http://127.0.0.1:{port}"

    def is_ready():
        assert process.is_alive(), (tmp_path / "stderr").read_text()
        return tiny.is_ready(address)

    tiny.wait_for(is_ready, seconds=120)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        messages = [{"role": "user", "content": tiny.SUM}]
        reply = client.chat.completions.create(model="answers", messages=messages)
    assert reply.choices[0].message.content == tiny.SUM_ANSWER
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)


def errors_of(*flags, **variables):
    done = processes.run(processes.run_module, "speechgpt_jax.serve", *flags, **variables)
    assert done.returncode == 1
    return done.stderr


def test_mistakes_are_one_line(run, certificate):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        errors = errors_of(f"--run={run}", f"--port={port}")
    assert errors.startswith(f"Error: --host=127.0.0.1 --port={port}: can't listen there")
    errors = errors_of(f"--run={run}", f"--port={processes.free_port()}", "--mesh=99")
    assert "Error: the number of devices (--mesh) 99 must be" in errors
    files = [f"--ssl_{name}file={certificate}/cert.pem" for name in ("cert", "key")]
    errors = errors_of(f"--run={run}", f"--port={processes.free_port()}", *files)
    assert "Error: --ssl_certfile, --ssl_keyfile: " in errors.splitlines()[-1]
    encrypted = certificate / "encrypted.pem"
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:a", "-out", encrypted, "-in"]
    subprocess.run([*command, certificate / "key.pem"], check=True, capture_output=True)
    files[1] = f"--ssl_keyfile={encrypted}"
    errors = errors_of(f"--run={run}", f"--port={processes.free_port()}", *files)
    assert errors.startswith(f"Error: --ssl_keyfile={encrypted} is encrypted by a pass phrase")
    assert len(errors.splitlines()) == 1
    errors = errors_of(f"--run={run}", SPEECHGPT_API_KEY="schlüssel")
    assert errors.startswith("Error: SPEECHGPT_API_KEY: expected a key of ASCII letters")
    assert len(errors.splitlines()) == 1 and "schl" not in errors
