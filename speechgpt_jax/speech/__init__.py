"""Signal processing, the speech encoder and the unit vocoder; knows no language model."""
