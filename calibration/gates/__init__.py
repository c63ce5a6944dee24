"""Training gates on a frozen model."""
