"""The health envelope: what a memory meets, learned from recorded episodes."""
