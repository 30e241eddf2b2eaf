"""All figures, and all of matplotlib."""
