"""Memory that hides between the frames of one call: found, named, and made a state on request."""
