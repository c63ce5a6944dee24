"""Measurement and pictures. Never imports torch."""

from stategate.common.dependencies import silence

silence()
