"""What computes a step, one module an engine, and which engine a bundle gets."""
