"""Training: Fit, its loop, and what happens between two chunks of steps."""
