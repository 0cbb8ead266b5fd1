"""The training loop: objective, attention over documents, checkpoints. Needs torch."""
