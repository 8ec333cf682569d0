"""Recipe, loss, loop, checkpoint."""
