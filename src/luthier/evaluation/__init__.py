"""Metrics, one evaluator for every kind of model, paired comparison and its verdict."""
