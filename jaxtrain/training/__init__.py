"""Training: ``Fit``, the training loop, and what happens between two chunks of steps."""
