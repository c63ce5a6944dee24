"""How the zoo's trained models learned."""
