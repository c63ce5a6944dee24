"""Tools without opinions that several rooms share: console, pages, compiler, CPU features."""
