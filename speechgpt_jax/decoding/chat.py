"""Chat in a terminal: lines of text in; text while it is written, and sound, out."""

import datetime
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
from etils import epath

from speechgpt_jax import arguments, prompts
from speechgpt_jax.decoding.conversation import Conversation, Question, Reply
from speechgpt_jax.decoding.events import Event, Sound, Text, Transcript
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import is_in_bucket, names_in
from speechgpt_jax.speech.audio import SAMPLE_RATE, check_output, save_audio
from speechgpt_jax.speech.recordings import load_recording
from speechgpt_jax.speech.sound_devices import Player, open_player, record

HELP = """\
Type a question, or the name of a recording of one. Commands:
  /say TEXT            read a text aloud
  /transcribe FILE     transcribe a recording
  /listen SECONDS      ask by the microphone
  /voice NAME          change the speaker; without a name, list them
  /save FILE           save the sound of the last reply
  /reset               forget the conversation
  /help                show this
  /quit                leave (or Ctrl-D); Ctrl-C stops a reply"""
COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("  /")]
WITHOUT_ARGUMENT = ("/reset", "/help", "/quit")
# Commands whose argument is a file.
WITH_FILE = ("/transcribe", "/save")
# Labels before the first text of a kind.
LABELS = {"transcript": "question: ", "text": "answer:   "}


def _last_number(folder: epath.Path | None) -> int:
    """Number of the newest reply that was saved in a folder; 0 without any."""
    names = names_in(folder) if folder else []
    found = [re.fullmatch(r"reply-(\d+)\.wav", name) for name in names]
    return max((int(match[1]) for match in found if match), default=0)


def _is_folder(line: str) -> bool:
    """Whether a line is the path of a folder; a single word is taken for a question."""
    return "/" in line and os.path.isdir(os.path.expanduser(line))


class _Loudspeaker:
    """Plays the sound of a reply, as long as this machine can.

    Attributes:
      player: None before the first sound, and if this machine can't play any.
      problem: why the sound was not played to its end.
    """

    def __init__(self):
        self.player: Player | None = None
        self.problem: UserError | None = None

    def play(self, wav: np.ndarray) -> None:
        """Plays float32 [samples] after those before; the first problem ends the sound."""
        self.player = self.player or open_player()
        if self.player and not self.problem:
            self._try(lambda player: player.write(wav))

    def close(self) -> None:
        """Waits for the end of the sound."""
        self._try(lambda player: player.close())

    def _try(self, action: Callable[[Player], None]) -> None:
        try:
            if self.player:
                action(self.player)
        except UserError as error:
            self.problem = self.problem or error


class Chat:
    """A conversation by lines of text."""

    def __init__(
        self,
        conversation: Conversation,
        *,
        aloud: bool = True,
        output_dir: str | os.PathLike | None = None,
        log: str | os.PathLike | None = None,
        show: Callable[[str], object],
    ):
        """
        Args:
          conversation: answers the lines.
          aloud: answer aloud as well.
          output_dir: folder for the sound of every reply; None: it is played.
          log: JSONL file on this machine to which every turn is added.
          show: writes text, like `print(text, end="", flush=True)`.
        """
        self.conversation, self.aloud = conversation, aloud
        self._output_dir = None if output_dir is None else epath.Path(output_dir)
        self._log = None if log is None else Path(log)
        self._show = show
        self._sound = np.zeros(0, np.float32)  # Of the last reply.
        # Replies of earlier chats in the same folder stay.
        self._number = _last_number(self._output_dir)

    def run(self, lines: Iterable[str]) -> None:
        """Handles lines until they end or one is /quit; shows mistakes and continues."""
        for line in lines:
            line = line.strip()
            if line == "/quit":
                return
            try:
                if line:
                    self.handle(line)
            except UserError as error:
                self._show(f"Error: {error}\n")
            except KeyboardInterrupt:  # While it records or waits for the end of a sound.
                self._show(" (stopped)\n")

    def handle(self, line: str) -> None:
        """Handles one line.

        Raises:
          UserError: the command is unknown or takes no argument, what it names doesn't exist, the
            line is a folder, or it holds bytes that are no UTF-8, as a terminal of another encoding
            sends.
        """
        command, _, argument = arguments.utf8(line).partition(" ")
        argument = argument.strip()
        if command in WITH_FILE:
            argument = os.path.expanduser(argument)
        if os.path.isfile(line) or not (line.startswith("/") or _is_folder(line)):
            self._talk(line)
        elif command not in COMMANDS:
            problem = f"{line} is a folder" if _is_folder(line) else f"{command} is unknown"
            choices = ", ".join(COMMANDS)
            raise UserError(f"{problem}; choose from {choices}, or name the file of a recording.")
        elif command in WITHOUT_ARGUMENT and argument:
            raise UserError(f"{command} takes no argument, got {argument!r}.")
        elif command == "/help":
            self._show(HELP + "\n")
        elif command == "/reset":
            self.conversation.reset()
        elif line == "/voice":
            self._show_voices()
        elif not argument:
            raise UserError(f"{command} needs an argument; /help shows which.")
        elif command == "/say":
            self._reply(line, self.conversation.reading(argument), read=argument)
        elif command == "/transcribe":
            self._transcribe(line, argument)
        elif command == "/listen":
            seconds = arguments.positive_float(argument)
            say = f"Speak now, {seconds:g} seconds ...\n"
            self._ask(line, record(seconds, lambda: self._show(say)))
        elif command == "/voice":
            self.conversation.model.vocoder.config.speaker_index(argument)
            self.conversation.speaker = argument
        elif command == "/save":
            self._save_last(argument)

    def _show_voices(self) -> None:
        config = self.conversation.model.vocoder.config
        current = config.speaker_index(self.conversation.speaker)
        for number, name in enumerate(config.speakers or ("0",)):
            self._show(f"{name} (now)\n" if number == current else f"{name}\n")

    def _talk(self, line: str) -> None:
        """A question or a task as text, or the name of a recording."""
        task = prompts.split_request(line)
        file = os.path.expanduser(task[1] if task else line)
        # Unlike Path.is_file, this takes texts that are too long for a name.
        if not (os.path.isfile(file) or is_in_bucket(file)):
            self._ask(line, line)
        elif task:
            self._transcribe(line, file, task[0] or prompts.TRANSCRIBE)
        else:
            self._ask(line, load_recording(file))

    def _transcribe(self, line: str, file: str, description: str = prompts.TRANSCRIBE) -> None:
        events = self.conversation.transcribing(load_recording(file), description)
        self._reply(line, events, aloud=False)

    def _ask(self, line: str, question: Question) -> None:
        events = self.conversation.ask(question, aloud=self.aloud)
        self._reply(line, events, aloud=self.aloud)

    def _reply(
        self, line: str, events: Generator[Event], *, aloud: bool = True, read: str | None = None
    ) -> None:
        """Shows, plays or saves, and logs a reply while it is written.

        Args:
          line: what was typed.
          events: the reply.
          aloud: whether sound is expected.
          read: the text that is read aloud, if that was asked.
        """
        self._number += 1
        start, first_times, received = time.monotonic(), {}, []
        loudspeaker, is_stopped = _Loudspeaker(), False
        try:
            for event in events:
                received.append(event)
                kind = type(event).__name__.lower()
                if kind in LABELS and kind not in first_times:
                    self._show(("\n" if first_times else "") + LABELS[kind])
                first_times.setdefault(kind, round(time.monotonic() - start, 3))
                if isinstance(event, Transcript | Text):
                    self._show(event.text)
                elif isinstance(event, Sound) and self._output_dir is None:
                    loudspeaker.play(event.wav)
        except KeyboardInterrupt:
            self._show(" (stopped)")
            is_stopped = True
        finally:
            events.close()
            loudspeaker.close()
        reply = Reply.of(received)
        self._show("\n")
        if reply.units:
            self._sound = reply.wav
            self._save(is_played=loudspeaker.player is not None)
        if not is_stopped:
            self._show_what_is_missing(read)
            if aloud and not reply.units:
                self._show("(no sound was made)\n")
        if self._log:
            self._write_log(self._log, line, reply, first_times)
        if loudspeaker.problem and not is_stopped:
            raise UserError(f"{loudspeaker.problem} /save FILE keeps it.")

    def _show_what_is_missing(self, read: str | None) -> None:
        """Says that the reply was cut off; of a text that is read aloud, which sentences were."""
        most = f"(cut off after --max_new_tokens={self.conversation.max_new_tokens}"
        if read is not None:
            for sentence in self.conversation.cut_sentences(read):
                self._show(f"{most}: {sentence})\n")
        elif self.conversation.answers[-1].finish_reason == "length":
            self._show(f"{most})\n")

    def _save_last(self, file: str) -> None:
        """Saves the sound of the last reply."""
        if not len(self._sound):
            raise UserError("there is no sound yet; ask something first.")
        check_output(file)
        folder = os.path.dirname(file)
        is_new = bool(folder) and not is_in_bucket(file) and not os.path.isdir(folder)
        save_audio(file, self._sound)
        seconds = f"{len(self._sound) / SAMPLE_RATE:.1f} s of sound"
        self._show(f"({seconds}, in {file}{f'; {folder} is a new folder' if is_new else ''})\n")

    def _save(self, *, is_played: bool) -> None:
        seconds = f"{len(self._sound) / SAMPLE_RATE:.1f} s of sound"
        if is_played:
            return
        if self._output_dir is None:
            self._show(f"({seconds}; no player was found: /save FILE keeps it)\n")
            return
        path = self._output_dir / f"reply-{self._number:03}.wav"
        save_audio(path, self._sound)
        self._show(f"({seconds}, in {path})\n")

    def _write_log(self, path: Path, line: str, reply: Reply, first_times: dict) -> None:
        """Adds a line: what was said, and after how many seconds each kind of event came first."""
        row = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "input": line,
            "transcript": reply.transcript,
            "text": reply.text,
            "units": reply.units,
            "sound_seconds": len(reply.wav) / SAMPLE_RATE,
            "first_after_seconds": first_times,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"--log={path} can't be written: {error}.") from error
