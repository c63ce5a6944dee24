"""TRIM-KV."""
