"""Measurement and pictures. Never imports torch."""
