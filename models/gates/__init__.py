"""Gates that are added to a model: hysteresis, and learned ones."""
