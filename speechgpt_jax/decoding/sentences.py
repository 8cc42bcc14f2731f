"""Sentences: the pieces in which a long text is read aloud."""

import re

# Marks of an end with the quotes and brackets that close after them, or an empty line.
_ENDS = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*|\n\s*\n")
# Words whose full stop ends no sentence.
_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "cf", "approx", "fig"}


def sentences(text: str) -> list[str]:
    """ "Dr. Fox ran 3.5 miles. Why?" -> ["Dr. Fox ran 3.5 miles.", "Why?"]; at least one.

    Pieces without a letter or a digit stay with the sentence before.
    """
    found, start = [""], 0
    for match in _ENDS.finditer(text):
        words = text[start : match.start()].split()
        last = words[-1].lstrip("\"'“‘«([").lower() if words else ""
        # One character is an initial or the number of a list; "e.g." and "p.m." have inner stops.
        goes_on = len(last) == 1 or "." in last or last in _ABBREVIATIONS
        if match[0] != "." or not goes_on:
            _add(found, text[start : match.end()])
            start = match.end()
    _add(found, text[start:])
    return [piece.strip() for piece in found]


def _add(found: list[str], piece: str) -> None:
    """Adds a piece to a list, or to its last one, if either has no words."""
    if all(any(map(str.isalnum, part)) for part in (found[-1], piece)):
        found.append(piece)
    else:
        found[-1] += piece
