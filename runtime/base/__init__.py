"""What everything in the runtime stands on: buffers, counters, clock."""
