"""Two bundles in one folder: the one that runs, and one that is tried or can be gone back to."""
