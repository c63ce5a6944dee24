"""The record of a measurement, and what is drawn from it."""
