"""Closed forms for memory, file sizes, operations and time. Sizes are bytes, times seconds; no torch here."""
