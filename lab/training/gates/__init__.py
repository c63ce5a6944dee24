"""Gates that are trained on a frozen model."""
