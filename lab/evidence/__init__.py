"""What the pages claim, measured on deployed bundles."""
