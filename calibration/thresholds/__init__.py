"""Which threshold a hard gate gets."""
