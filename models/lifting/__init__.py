"""Modules that keep their memory to themselves become steps."""
