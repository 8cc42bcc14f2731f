"""A short regular expression that matches any of many tokens."""

import re
from collections.abc import Iterable


def any_of(tokens: Iterable[str]) -> str:
    """A pattern that matches the longest possible one of `tokens`.

    `["<1>", "<2>", "<21>"]` -> `<(?:1>|2(?:>|1>))`. Characters with the same continuations share a
    class, so that the pattern of a thousand units has some fifty characters; `<0>|<1>|...` would be
    slow, because its alternatives are tried one by one.
    """
    rests: dict[str, list[str]] = {}
    tokens = list(tokens)
    for token in tokens:
        if token:
            rests.setdefault(token[0], []).append(token[1:])
    if not rests:
        return ""
    firsts: dict[str, list[str]] = {}
    for first, rest in rests.items():
        firsts.setdefault(any_of(rest), []).append(re.escape(first))
    branches = [
        (f"[{''.join(first)}]" if len(first) > 1 else first[0]) + rest
        for rest, first in firsts.items()
    ]
    if len(branches) == 1 and "" not in tokens:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + ("?" if "" in tokens else "")
