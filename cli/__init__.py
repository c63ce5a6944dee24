"""The command line: a verb is options, one call, and printing."""
