"""Memories, one folder a family: cell, configuration, sizes."""
