"""Decides numbers: which threshold a gate gets, from closed-loop episodes."""

from stategate.contract.dependencies import silence

silence()
