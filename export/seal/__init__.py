"""From a candidate to a sealed bundle."""
