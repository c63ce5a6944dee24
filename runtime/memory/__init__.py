"""Which bank of a state is live, and who may write."""
