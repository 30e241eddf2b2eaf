"""The training loop, its state, its optimizer, and the temperatures fitted at its end."""
