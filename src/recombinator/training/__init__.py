"""Training: recipes, losses and the training loop."""
