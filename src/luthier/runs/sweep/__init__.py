"""Sweeps: settings searched, candidates tuned side by side, score by number of rows; every trial a run."""
