"""Builders of training data, by Apache Beam: recordings to units, SpeechInstruct dialogues."""
