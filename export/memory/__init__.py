"""Where a module keeps memory, and whether anybody declared it."""
