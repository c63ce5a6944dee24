"""Frozen policies that get a memory: `stategate.wrap` on tasks of several kinds."""
