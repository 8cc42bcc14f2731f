"""Sound to units: HuBERT, k-means and what cuts long recordings."""
