"""Masks: the tokens that may follow in an answer, so that every answer has its form.

A form is a sequence of parts. Between `<sosp>` and `<eosp>` there are units only, elsewhere there
are none, and a part of text ends where the marker of the next part is complete, however the
tokenizer cuts it. All forms are one table of states, which the engine reads on the device:

    masks = Masks(tokenizer)
    engine = Engine(model, masks=masks.table)
    request = Request(prompt, ..., state=masks.start("speech_to_speech"))
"""

import contextlib
import enum

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
# Text and units, in any order and number.
ANY = "any"


def marker_after(parts: Parts) -> str:
    """Marker that ends the text `parts[0]`: start of the next part, or end of the answer."""
    markers = {Part.TEXT: prompts.TEXT_ANSWER, Part.UNITS: prompts.UNIT_ANSWER}
    return markers[parts[1]] if len(parts) > 1 else prompts.END_OF_ANSWER


class Masks:
    """The table of all forms for a tokenizer.

    Attributes:
      table: int8 [states, vocabulary], the state after each token, or FORBIDDEN.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._texts = _texts(tokenizer)
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
        """A state for each number of the marker's characters that the text ends with."""
        marker, following = marker_after(parts), self._state_of(parts[1:])
        states = [self._add_state(parts[0]) for _ in marker]
        self._starts[parts] = states[0]
        # Text after the marker belongs to the next part, which is no text if it begins with a tag.
        text_may_follow = parts[1:2] != (Part.UNITS,)
        for matched, state in enumerate(states):
            self._rows[state][list(self._texts)] = states[0]
            for id_, text in self._texts.items():
                if marker[0] not in text and not text.startswith(marker[matched]):
                    continue
                number, rest = _match(marker, matched, text)
                if number < len(marker):
                    self._rows[state][id_] = states[number]
                elif text_may_follow or not rest.strip():
                    self._rows[state][id_] = following
            if len(parts) == 1:
                self._rows[state][list(self._tokenizer.stop_ids)] = self._state_of(())

    def _add_any(self) -> None:
        self._starts[ANY] = start = self._state_of((Part.TEXT,))
        if self._tokenizer.unit_ids:
            # The states of a text, each with `<sosp>` in addition.
            first = len(self._rows)
            texts = range(start, start + len(prompts.END_OF_ANSWER))
            for state in texts:
                self._add_state(Part.TEXT)
                row = self._rows[state]
                self._rows[-1][:] = np.where(np.isin(row, texts), row + first - start, row)
            self._starts[ANY] = first
            self._add_units(first, first)
            sosp = self._tokenizer.token_to_id(START)
            for state in range(first, first + len(texts)):
                self._rows[state][sosp] = self._rows[first][sosp]


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
            is_last = index + 1 == len(parts)
            suffix = "" if is_last else f'[suffix="{marker_after(parts[index:])}"]'
            lines.append(f"{part.value}{suffix}: /(.|\\n)*/")
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


def _match(marker: str, matched: int, text: str) -> tuple[int, str]:
    """Reads `text` after `matched` characters of `marker`.

    Returns:
      The number of the marker's characters with which the text ends, or all of them if the marker
      was completed, and the rest of the text after it: `("[ta]", 2, "a]b")` -> `(4, "b")`.
    """
    for position, character in enumerate(text):
        while matched and marker[matched] != character:
            # The longest shorter beginning of the marker with which the text ends.
            seen = marker[:matched]
            matched = next(n for n in range(matched - 1, -1, -1) if seen.endswith(marker[:n]))
        matched += marker[matched] == character
        if matched == len(marker):
            return matched, text[position + 1 :]
    return matched, ""
