"""Does this machine do what the exporter saw."""
