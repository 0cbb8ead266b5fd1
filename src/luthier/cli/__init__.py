"""Words into calls; prints."""
