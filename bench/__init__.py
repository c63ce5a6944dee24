"""Measurement and pictures. Never imports torch."""

from stategate.contract.dependencies import silence

silence()
