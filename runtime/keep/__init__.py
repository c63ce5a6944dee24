"""Memory on disk: snapshots, the folder, flash wear."""
