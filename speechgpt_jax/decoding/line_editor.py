"""The prompt of a chat: a history, and completion of commands, names of files and voices."""

from collections.abc import Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    WordCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from speechgpt_jax.decoding.chat import COMMANDS, WITH_FILE
from speechgpt_jax.files import user_cache


def start_session(voices: Sequence[str]) -> PromptSession[str]:
    """A prompt whose history is kept for the next chat; `voices` are names for /voice."""
    folder = user_cache()
    return PromptSession(
        "> ",
        history=FileHistory(str(folder / "chat_history")) if folder else None,
        completer=LineCompleter(voices),
    )


def typed_lines(session: PromptSession[str]) -> Iterator[str]:
    """Lines typed at a prompt."""
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


class LineCompleter(Completer):
    """Completes a command after a slash, its argument, and elsewhere names of recordings."""

    def __init__(self, voices: Sequence[str]):
        """`voices` are names of the speakers for /voice."""
        self._files = PathCompleter(expanduser=True)
        self._commands = WordCompleter(COMMANDS, sentence=True)
        self._voices = WordCompleter(voices, sentence=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        """Completions of what is written before the cursor."""
        line = document.text_before_cursor
        command, space, argument = line.partition(" ")
        if not space or command not in COMMANDS:
            if line.startswith("/"):
                yield from self._commands.get_completions(Document(line), event)
            yield from self._files.get_completions(Document(line), event)
        elif command == "/voice":
            yield from self._voices.get_completions(Document(argument.lstrip()), event)
        elif command in WITH_FILE:
            yield from self._files.get_completions(Document(argument.lstrip()), event)
