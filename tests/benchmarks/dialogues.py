"""How long the dialogues of SpeechInstruct are, for all benchmarks alike."""

import numpy as np

LONGEST = 512


def dialogue_lengths(count: int, at_least: int = 1) -> np.ndarray:
    """Log-normal numbers of tokens [count], median 180."""
    lengths = np.random.default_rng(0).lognormal(np.log(180), 0.6, count)
    return np.clip(lengths, at_least, LONGEST).astype(int)
