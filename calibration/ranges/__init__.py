"""How large a step's tensors become."""
