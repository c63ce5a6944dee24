"""Gates that are added to a model and learned."""
