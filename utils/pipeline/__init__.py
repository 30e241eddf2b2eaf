"""A folder in, results out."""
