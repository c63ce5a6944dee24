"""What a session reports."""
