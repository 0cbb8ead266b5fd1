"""Records and protocols that cross stages, and the only YAML door."""
