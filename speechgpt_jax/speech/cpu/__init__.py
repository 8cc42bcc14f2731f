"""CPU inference: `inference.for_inference` makes models fast, `devices` has one for each core.

Nothing else in `speech` asks which backend JAX runs on.
"""
