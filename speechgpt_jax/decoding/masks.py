"""Masks: the tokens that may follow in an answer, so that every answer has its form.

A form is a sequence of parts. Between `<sosp>` and `<eosp>` there are units only, elsewhere there
are none, and a part of text ends where the marker of the next part is complete, however the
tokenizer cuts it. No other marker can be completed in a text. All forms are one table of states,
which the engine reads on the device:

    masks = Masks(tokenizer)
    engine = Engine(model, masks=masks.table)
    request = Request(prompt, ..., state=masks.start("speech_to_speech"))
"""

import collections
import contextlib
import enum
import itertools
import re
from collections.abc import Collection, Sequence

import numpy as np

from speechgpt_jax import prompts
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_choice
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import END, START

FORBIDDEN = -1


class Part(enum.Enum):
    """Part of an answer."""

    TRANSCRIPT = "transcript"  # Of the question.
    TEXT = "text"
    UNITS = "units"


Parts = tuple[Part, ...]

# Form -> its parts.
FORMS: dict[str, Parts] = {
    "speech_to_speech": (Part.TRANSCRIPT, Part.TEXT, Part.UNITS),
    "speech_to_text": (Part.TRANSCRIPT, Part.TEXT),
    "text_to_speech": (Part.TEXT, Part.UNITS),
    "text": (Part.TEXT,),
    "units": (Part.UNITS,),
}
# Text and units, in any order and number, and the markers of all parts.
ANY = "any"

# Markers that only stand between parts, even where ordinary tokens spell them.
MARKERS = (prompts.TEXT_ANSWER, prompts.UNIT_ANSWER, prompts.END_OF_ANSWER, START, END)


def markers_after(parts: Parts) -> tuple[str, ...]:
    """Markers that end the text `parts[0]`; the first one is that of the training data.

    A model that is unsure may end an answer to be spoken after its text, or go on to units in an
    answer without. The other marker is then read as if it were the right one: else the model would
    write on until its tokens are used up.
    """
    if parts[1:2] == (Part.TEXT,):
        return (prompts.TEXT_ANSWER,)
    ends = prompts.UNIT_ANSWER, prompts.END_OF_ANSWER
    return ends if len(parts) > 1 else ends[::-1]


class Masks:
    """The table of all forms for a tokenizer.

    Attributes:
      table: int8 [states, vocabulary], the state after each token, or FORBIDDEN.
      longest_token: most characters of a token.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._texts = _texts(tokenizer)
        self.longest_token = max(map(len, [*self._texts.values(), *tokenizer.added_tokens]))
        # Tokens in which a marker may begin, and all tokens by their first character.
        first_characters = {marker[0] for marker in MARKERS}
        self._opening = [i for i, text in self._texts.items() if first_characters & {*text}]
        self._starting = collections.defaultdict[str, list[int]](list)
        for id_, text in self._texts.items():
            self._starting[text[:1]].append(id_)
        self._rows: list[np.ndarray] = []
        self._parts: list[Part | None] = []
        self._starts: dict[Parts | str, int] = {}
        for form in FORMS.values():
            if tokenizer.unit_ids or Part.UNITS not in form:
                self._state_of(form)
        self._add_any()
        self.table = np.stack(self._rows)

    def start(self, form: str) -> int:
        """State at the start of an answer of a form, one of FORMS or ANY.

        Raises:
          UserError: the form is unknown, or it has units and the tokenizer has none.
        """
        check_choice("form", form, (*FORMS, ANY))
        key = FORMS.get(form, ANY)
        if key not in self._starts:
            raise UserError(f"the form {form} has units, and the tokenizer has none.")
        return self._starts[key]

    def form(self, state: int) -> str:
        """The form whose answers start in a state."""
        return next(form for form in forms(self._tokenizer) if self.start(form) == state)

    def part(self, state: int) -> Part | None:
        """The part to which the next token belongs; None at the end of the answer.

        In an answer of ANY form it is TEXT or UNITS.
        """
        return self._parts[state]

    def _state_of(self, parts: Parts) -> int:
        """First state of an answer that still needs `parts`, added to the table if it is new."""
        if parts not in self._starts:
            if not parts:
                self._starts[parts] = end = self._add_state(None)
                self._rows[end][list(self._tokenizer.stop_ids)] = end
            elif parts[0] is Part.UNITS:
                self._starts[parts] = self._add_state(Part.UNITS)
                self._add_units(self._starts[parts], self._state_of(parts[1:]))
            else:
                self._add_text(parts)
        return self._starts[parts]

    def _add_state(self, part: Part | None) -> int:
        self._rows.append(np.full(self._tokenizer.vocab_size, FORBIDDEN, np.int8))
        self._parts.append(part)
        return len(self._rows) - 1

    def _add_units(self, before: int, after: int) -> None:
        """From `before`: `<sosp>`, at least one unit, `<eosp>`, and on to `after`."""
        start, end = map(self._tokenizer.token_to_id, (START, END))
        none_yet, some = self._add_state(Part.UNITS), self._add_state(Part.UNITS)
        self._rows[before][start] = none_yet
        for state in (none_yet, some):
            self._rows[state][list(self._tokenizer.unit_ids)] = some
        self._rows[some][end] = after

    def _add_text(self, parts: Parts) -> None:
        following = self._state_of(parts[1:])
        # Text after the marker belongs to the next part, which is no text if it begins with a tag.
        text_may_follow = parts[1:2] != (Part.UNITS,)
        last = markers_after(parts)
        states = self._add_text_states(parts[0], MARKERS, last, following, text_may_follow)
        self._starts[parts] = states[0]
        if len(parts) == 1:
            for state in states:
                self._rows[state][list(self._tokenizer.stop_ids)] = following

    def _add_text_states(
        self,
        part: Part,
        markers: Sequence[str],
        last: Collection[str],
        following: int,
        text_may_follow: bool = True,
    ) -> list[int]:
        """A state for each beginning of a marker with which a text may end; the first is for "".

        Args:
          part: the part to which the text belongs.
          markers: what can't be completed in the text.
          last: those of them that end the text instead.
          following: the state after one of these.
          text_may_follow: whether the token that completes it may hold more than white space then.
        """
        starts = sorted({marker[:i] for marker in markers for i in range(len(marker))}, key=len)
        states = {start: self._add_state(part) for start in starts}
        for start, state in states.items():
            row = self._rows[state]
            row[list(self._texts)] = states[""]
            next_characters = {m[len(start)] for m in markers if m.startswith(start)}
            going_on = (id_ for character in next_characters for id_ in self._starting[character])
            for id_ in itertools.chain(self._opening, going_on):
                end, rest = _read(start, self._texts[id_], starts, markers)
                if end in states:
                    row[id_] = states[end]
                elif end in last and (text_may_follow or not rest.strip()):
                    row[id_] = following
                else:
                    row[id_] = FORBIDDEN
        return list(states.values())

    def _add_any(self) -> None:
        end = prompts.END_OF_ANSWER
        states = self._add_text_states(Part.TEXT, (end,), (end,), self._state_of(()))
        self._starts[ANY] = states[0]
        for state in states:
            self._rows[state][list(self._tokenizer.stop_ids)] = self._state_of(())
        if self._tokenizer.unit_ids:
            self._add_units(states[0], states[0])
            sosp = self._tokenizer.token_to_id(START)
            for state in states:
                self._rows[state][sosp] = self._rows[states[0]][sosp]


def forms(tokenizer: Tokenizer) -> list[str]:
    """Names of the forms that a tokenizer can write; one without units writes only text."""
    has_units = bool(tokenizer.unit_ids)
    return [form for form, parts in FORMS.items() if has_units or Part.UNITS not in parts] + [ANY]


def grammar(form: str, tokenizer: Tokenizer) -> str:
    """A form as a grammar in llguidance's variant of Lark, for other engines.

    Units are given by their token ids; tokens that are special to the engine never match text.

    Args:
      form: one of `forms(tokenizer)`.
      tokenizer: the tokenizer.
    """
    check_choice("form", form, forms(tokenizer))
    parts = FORMS.get(form, ())
    lines = ["%llguidance {}"]
    if parts:
        lines.append("start: " + " ".join(part.value for part in parts))
    else:
        either = "(text | units)*" if tokenizer.unit_ids else "text"
        lines += [f"start: {either}", "text: /(.|\\n)+/"]
    for index, part in enumerate(parts):
        if part is not Part.UNITS:
            last = markers_after(parts[index:])
            others = "|".join(re.escape(marker) for marker in MARKERS if marker not in last)
            end = "|".join(map(re.escape, last))
            suffix = f"[suffix=/{end}/]" if index + 1 < len(parts) else ""
            name = part.name
            lines.append(f"{part.value}{suffix}: {name}")
            lines.append(f"{name}: /(.|\\n)*/ & ~/(.|\\n)*({others})(.|\\n)*/")
    if Part.UNITS in parts or (form == ANY and tokenizer.unit_ids):
        start, end = map(tokenizer.token_to_id, (START, END))
        units = tokenizer.unit_ids
        lines.append(f"units: <[{start}]> <[{units[0]}-{units[-1]}]>+ <[{end}]>")
    return "\n".join(lines) + "\n"


def _texts(tokenizer: Tokenizer) -> dict[int, str]:
    """Id -> text of every token that is neither an added nor a control token."""
    others = {*tokenizer.added_tokens.values(), *tokenizer.stop_ids, tokenizer.pad_id}
    texts = {}
    for id_ in range(tokenizer.vocab_size):
        if id_ in others or id_ in (tokenizer.bos_id, tokenizer.unk_id):
            continue
        with contextlib.suppress(UserError):  # Some ids below the highest have no token.
            texts[id_] = tokenizer.decode([id_])
    return texts


def _read(
    seen: str, text: str, starts: Collection[str], markers: Collection[str]
) -> tuple[str, str]:
    """Reads `text` after `seen`, one of the markers' `starts`.

    Returns:
      The longest of the starts with which it then ends, or the first marker that was completed, and
      the rest of the text after it: `("[t", "a]b")` -> `("[ta]", "b")`.
    """
    for position, character in enumerate(text):
        seen += character
        while seen not in starts and seen not in markers:
            seen = seen[1:]
        if seen in markers:
            return seen, text[position + 1 :]
    return seen, ""
