"""The memory against a cache that grows, and a bound on what it loses."""
