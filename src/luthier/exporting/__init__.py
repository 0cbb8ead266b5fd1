"""Writes what leaves a run: GGUF files, model card, licence bundle, checksums. It only writes."""
