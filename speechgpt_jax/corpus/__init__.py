"""Builders of training data: units of recordings, SpeechInstruct, targets of a HuBERT, voices."""
