"""Decides numbers: which threshold a gate gets, from closed-loop episodes."""

from stategate.common.dependencies import silence

silence()
