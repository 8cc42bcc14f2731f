"""Files of sound: the recordings in one, their decoders, and checks that nothing is missing."""
