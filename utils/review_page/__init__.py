"""The results of prediction runs as a page on which a person reviews them."""
