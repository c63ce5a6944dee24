"""The same step in other people's runtimes, each in an environment of its own."""
