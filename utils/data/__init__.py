"""Files to arrays: images, masks, pairs of both, and what the network takes."""
