"""Units to sound: HiFi-GAN, duration and pitch predictors, streaming."""
