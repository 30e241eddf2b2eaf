"""Files to arrays: images, masks, pairs of both, and network input."""
