"""Chat by lines of text, with the model that knows one dialogue."""

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from speechgpt_jax.decoding.chat import COMMANDS, Chat
from speechgpt_jax.decoding.conversation import Conversation
from speechgpt_jax.decoding.line_editor import LineCompleter, start_session
from speechgpt_jax.speech.audio import load_audio
from tests import local_bucket
from tests.decoding.conftest import CLIPS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def chat(model, tmp_path):
    shown = []
    conversation = Conversation(model, max_new_tokens=64)
    chat = Chat(conversation, output_dir=tmp_path, log=tmp_path / "chat.jsonl", show=shown.append)
    chat.shown = shown
    return chat


def run(chat, *lines):
    """Output of the chat for the lines."""
    chat.shown.clear()
    chat.run(lines)
    return "".join(chat.shown)


def test_a_recorded_question_is_answered_saved_and_logged(chat, question, tmp_path):
    shown = run(chat, str(CLIPS / question["file"]))
    assert shown.startswith(f"question: {question['text']}\nanswer:   {question['answer']}\n")
    sound = load_audio(tmp_path / "reply-001.wav")
    [row] = map(json.loads, (tmp_path / "chat.jsonl").read_text().splitlines())
    assert row["text"] == question["answer"] and row["transcript"] == question["text"]
    assert row["sound_seconds"] == pytest.approx(len(sound) / 16_000) and row["units"]
    assert row["first_after_seconds"].keys() == {"transcript", "text", "units", "sound"}
    assert re.fullmatch(
        rf"\([\d.]+ s of sound, in {tmp_path}/new/again.flac; {tmp_path}/new is a new folder\)\n",
        run(chat, f"/save {tmp_path}/new/again.flac"),
    )
    np.testing.assert_allclose(load_audio(tmp_path / "new" / "again.flac"), sound, atol=1e-4)


@pytest.mark.parametrize("output_dir", ["{folder}/a [b]", "gs://a [b]"])
def test_a_second_chat_keeps_the_replies_of_the_first(model, tmp_path, output_dir):
    log = tmp_path / "new" / "chat.jsonl"
    folder = output_dir.format(folder=tmp_path)
    with local_bucket.below(tmp_path):
        for _ in range(2):
            chat = Chat(Conversation(model), output_dir=folder, log=log, show=str)
            chat.run(["/say good day"])
    assert sorted(os.listdir(tmp_path / "a [b]")) == ["reply-001.wav", "reply-002.wav"]
    assert len(log.read_text().splitlines()) == 2


def test_a_recording_on_a_bucket_is_a_question(chat, question):
    with local_bucket.below(CLIPS):
        shown = run(chat, f"gs://{question['file']}")
        assert shown.startswith(f"question: {question['text']}\n")
        assert "Error: gs://none.wav can't be read" in run(chat, "gs://none.wav")


def test_commands(chat, question, tmp_path):
    assert "in " in run(chat, "/say good day")
    assert (tmp_path / "reply-001.wav").exists()
    recording = CLIPS / question["file"]
    for line in (f"/transcribe {recording}", f"Transcribe it. This is input: {recording}"):
        assert "of sound" not in run(chat, line)
    run(chat, "what is it?", "/voice rms")
    assert chat.conversation.speaker == "rms" and len(chat.conversation.history) == 1
    run(chat, "/reset", "/quit", "what is it?")
    assert not chat.conversation.history
    assert all(command in run(chat, "/help") for command in COMMANDS)


def test_a_long_text_is_read_and_what_is_cut_is_shown(chat):
    whole = len(run(chat, "/say good day") and chat._sound)
    assert "cut off" not in run(chat, "/say good day! good day!")
    assert len(chat._sound) > whole
    chat.conversation.max_new_tokens = 2
    shown = run(chat, "/say good day! good night")
    assert "(cut off after --max_new_tokens=2: good day!)\n" in shown
    assert "(cut off after --max_new_tokens=2: good night)\n" in shown
    assert "no sound" not in shown
    note = "(cut off after --max_new_tokens=2)\n"
    assert run(chat, "what is it?").endswith(f"\n{note}(no sound was made)\n")
    chat.aloud = False
    assert run(chat, "what is it?").endswith(f"\n{note}")


def test_the_voices_are_listed(chat):
    run(chat, "/voice rms")
    assert run(chat, "/voice") == "slt\nrms (now)\nkal16\njm_kumo\n"


def wait_up_to(seconds, condition):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)


@pytest.fixture
def completed(tmp_path, monkeypatch):
    """Lines as they are after a Tab."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)  # The history is kept there.
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a question.wav").touch()
    # At a prompt with pipes instead of a terminal.
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        session = start_session(["slt", "jm_kumo"])

        def press():
            """Tab when completions are shown, and Enter when one is written."""
            buffer = session.default_buffer
            wait_up_to(1, lambda: buffer.complete_state and buffer.complete_state.completions)
            typed = buffer.text
            keys.send_text("\t")
            wait_up_to(1, lambda: buffer.text != typed)
            keys.send_text("\n")

        def completed(line):
            keys.send_text(line)
            threading.Thread(target=press).start()
            return session.prompt()

        yield completed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/tr", "/transcribe"),
        ("/res", "/reset"),
        ("so", "sounds"),
        ("sounds/a q", "sounds/a question.wav"),
        ("~/sounds/a", "~/sounds/a question.wav"),
        ("/transcribe sounds/a", "/transcribe sounds/a question.wav"),
        ("/save so", "/save sounds"),
        ("/voice j", "/voice jm_kumo"),
        ("/say so", "/say so"),
        ("/sing so", "/sing so"),
    ],
)
def test_lines_are_completed(completed, line, expected):
    assert completed(line) == expected


def test_a_slash_begins_a_command_or_a_path(tmp_path):
    (tmp_path / "question.wav").touch()
    completer = LineCompleter(["slt"])

    def texts(line):
        found = completer.get_completions(Document(line), CompleteEvent())
        return [completion.text for completion in found]

    assert texts("/s")[:2] == ["/say", "/save"]
    assert texts(f"{tmp_path}/que") == ["stion.wav"]
    assert texts("/voice ") == ["slt"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("/sing hello", "/sing is unknown; choose from /say, /transcribe, "),
        ("/nope.wav", "/nope.wav is unknown; choose from /say, "),
        ("/", "/ is a folder; choose from /say, "),
        ("/etc", "/etc is a folder; choose from /say, "),
        ("~/", "~/ is a folder; choose from /say, "),
        ("/quit now", "/quit takes no argument, got 'now'."),
        ("/reset all", "/reset takes no argument, got 'all'."),
        ("/help me", "/help takes no argument, got 'me'."),
        ("/say", "/say needs an argument"),
        ("/transcribe none.wav", "none.wav"),
        ("/voice eve", "no speaker 'eve'"),
        ("/save x.wav", "there is no sound yet"),
        ("/listen long", "expected a number"),
        ("/listen 7200", "7200.0 must be above 0 and at most 600"),
        ("caf\udce9?", r"expected a text in UTF-8, got 'caf\udce9?'"),
        ("/say caf\udce9", "expected a text in UTF-8"),
    ],
)
def test_mistakes_are_shown_and_the_chat_goes_on(chat, line, message):
    shown = run(chat, line, "/help")
    assert shown.startswith("Error: ") and message in shown
    assert shown.count("Error: ") == 1 and "/transcribe FILE" in shown


def test_a_long_line_is_no_name_of_a_file(chat):
    """Names end at 255 bytes; the model's context is longer."""
    assert run(chat, "what is it? " * 30).startswith(("answer: ", "Error: A prompt of"))


def test_files_in_the_home_folder(chat, question, monkeypatch):
    monkeypatch.setenv("HOME", str(CLIPS))
    assert run(chat, f"~/{question['file']}", f"/transcribe ~/{question['file']}").count("\n") > 2
    assert len(chat.conversation.history) == 1


def test_ctrl_c_stops_a_recording_and_not_the_chat(chat, monkeypatch):
    def interrupted(seconds, on_start):
        raise KeyboardInterrupt

    monkeypatch.setattr("speechgpt_jax.decoding.chat.record", interrupted)
    shown = run(chat, "/listen 5", "/help")
    assert "(stopped)" in shown and "/transcribe FILE" in shown


def test_no_microphone(chat, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # It can't be imported.
    assert run(chat, "/listen 1").startswith("Error: no microphone: recording needs PortAudio")


class PortAudioError(Exception):
    pass


class Unplugged:
    """The sounddevice of a loudspeaker that is unplugged during the first sound."""

    PortAudioError = PortAudioError

    def __init__(self, **options):
        pass

    OutputStream = classmethod(lambda cls, **options: cls())

    def start(self):
        pass

    def write(self, wav):
        raise PortAudioError("Device unavailable")

    stop = close = lambda self: self.write(None)


def test_an_unplugged_loudspeaker_ends_the_sound_and_not_the_chat(chat, question, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", Unplugged)
    folder, chat._output_dir = chat._output_dir, None
    shown = run(chat, str(CLIPS / question["file"]), f"/save {folder}/reply.wav", "/help")
    message = "Error: the sound was not played to its end: Device unavailable. /save FILE keeps it."
    assert shown.count(message) == 1 and f"answer:   {question['answer']}" in shown
    assert "/transcribe FILE" in shown and len(load_audio(folder / "reply.wav"))
    assert len((folder / "chat.jsonl").read_text().splitlines()) == 1


def test_a_player_that_fails_is_named(chat, question, tmp_path, monkeypatch):
    """Fails like aplay without a sound card."""
    player = tmp_path / "bin" / "aplay"
    player.parent.mkdir()
    player.write_text("#!/bin/sh\nexit 1\n")
    player.chmod(player.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{player.parent}:{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    chat._output_dir = None
    shown = run(chat, str(CLIPS / question["file"]))
    assert "aplay failed with exit code 1, perhaps because there is no sound device. /save" in shown


def test_sound_goes_to_a_player(chat, question, tmp_path, monkeypatch):
    """A program named aplay, which keeps what it is given."""
    player = tmp_path / "bin" / "aplay"
    player.parent.mkdir()
    player.write_text(f"#!/bin/sh\ncat > {tmp_path}/played\n")
    player.chmod(player.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{player.parent}:{os.environ['PATH']}")
    chat._output_dir = None
    run(chat, str(CLIPS / question["file"]), f"/save {tmp_path}/reply.wav")
    played = np.fromfile(tmp_path / "played", "<i2") / 32767
    np.testing.assert_allclose(played, load_audio(tmp_path / "reply.wav"), atol=1e-4)


def test_the_model_is_sharded_over_two_devices(untrained_run, tmp_path):
    flags = [f"--run={untrained_run}", "--max_new_tokens=12", "--context=512", "--written"]
    replies = []
    for mesh in ([], ["--mesh=2"]):
        done = subprocess.run(
            [sys.executable, "-m", "speechgpt_jax.chat", *flags, *mesh],
            input=b"what is it?\n",
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        replies.append(done.stdout.decode())
    assert replies[0] == replies[1] and replies[0].startswith("answer:")


def test_piped_lines_without_tensorflow(untrained_run, tmp_path):
    """The command itself, with a run that was never trained."""
    program = (
        "import atexit, runpy, sys;"
        "atexit.register(lambda: print('imported:', 'tensorflow' in sys.modules));"
        "sys.argv = sys.argv[1:]; runpy.run_module('speechgpt_jax.chat', run_name='__main__')"
    )
    flags = [f"--run={untrained_run}", f"--output_dir={tmp_path}", "--max_new_tokens=12"]
    done = subprocess.run(
        [sys.executable, "-c", program, "chat", *flags, "--context=512"],
        input=b"what is it?\n/say good day\n/sing\n\n\xff\xfe\n",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    shown = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert shown.count("answer:") == 2 and "Error: /sing is unknown" in shown
    assert shown.endswith("imported: False\n")
    assert (tmp_path / "reply-002.wav").exists()
