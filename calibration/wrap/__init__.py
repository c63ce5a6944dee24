"""A frozen backbone gets a memory and a gate, trained on recordings."""
