"""CPU inference: `inference.for_inference` makes models fast, `devices` runs programs in parallel.

Nothing else in `speech` asks which backend JAX runs on.
"""
