"""Bundles, runs and other processes as somebody looks at them."""
