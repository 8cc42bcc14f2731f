"""Speech encoder: sound -> units, by HuBERT features and k-means."""
