"""Who made a bundle, and whether this machine lets its native code run."""
