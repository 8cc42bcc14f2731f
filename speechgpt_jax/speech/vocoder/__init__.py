"""Unit vocoder: HiFi-GAN, duration and pitch predictors, streaming, training losses."""
