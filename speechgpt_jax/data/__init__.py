"""From SeqIO tasks and mixtures to packed batches of this host."""
