"""Recipe, loss, and the training loop."""
