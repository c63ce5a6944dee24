"""Simulated robots that have to remember, driven by bundles."""
