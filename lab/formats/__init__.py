"""A recording in every format that is read, made by that format's own library."""
