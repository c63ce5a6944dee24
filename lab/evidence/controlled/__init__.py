"""Streams with a known truth: models, gates and schedules through bundles and the ledger."""
