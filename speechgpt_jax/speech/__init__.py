"""Audio, HuBERT units and the unit vocoder; knows no language model."""
