"""Measuring: processes, bursts, sensors."""
