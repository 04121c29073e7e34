"""Scene objects."""
