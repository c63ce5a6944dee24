"""Many devices: bundles that are put on them over ssh, and what comes back."""
