"""Recordings of other tools as episodes, and what a bundle did as recordings of other tools."""
