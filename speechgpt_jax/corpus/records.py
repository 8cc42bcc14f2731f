"""Records of SpeechInstruct as lines of JSON, and checks of the texts in them."""

import json
import re

from speechgpt_jax import prompts
from speechgpt_jax.unit_text import UNIT

# In a text, these would be read as units or as the tokens between a dialogue's turns.
_MARKERS = re.compile("|".join([*map(re.escape, prompts.MARKERS), UNIT.pattern]))


def record(prefix: str, template: str, values: dict[str, str]) -> str:
    """A line of JSON with `prefix` and `plain_text`."""
    return json.dumps({"prefix": prefix, "plain_text": template.format(**values)})


def rejected(row: dict, reason: str) -> str:
    """A line of JSON: the row, without its units, and the reason."""
    row = {name: value for name, value in row.items() if name not in ("units", "durations")}
    return json.dumps(row | {"reason": reason})


def reason_against(text: object) -> str:
    """Reason why a text can't be in a record; "" if it can."""
    # Format characters, such as zero-width spaces, and control characters are not printable.
    if not isinstance(text, str) or not any(c.isprintable() for c in text.replace(" ", "")):
        return "there is no text"
    if "\0" in text:
        return "the text has a NUL character in it, as texts of another encoding do"
    if re.search("[\ud800-\udfff]", text):
        return "the text has a lone surrogate in it, half of a UTF-16 pair"
    marker = _MARKERS.search(text)
    return f"the text has {marker[0]} in it, which is a token" if marker else ""


def one_line(text: str) -> str:
    """ "a  b\\nc" -> "a b c"."""
    return " ".join(text.split())
