"""The house's own laboratory: tested, and not installed."""
