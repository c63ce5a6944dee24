"""Recordings in and out of a session."""
