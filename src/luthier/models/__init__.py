"""Load base models, adapt them, merge adapters, and let them answer. Needs torch."""
