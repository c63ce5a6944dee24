"""Decides numbers: which threshold a gate gets, from closed-loop episodes."""
