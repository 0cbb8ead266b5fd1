"""Weights and wheels from elsewhere: the Hugging Face Hub, the package index, and the cache they land in."""
