"""Audit hardware, estimate a candidate, recommend, and resolve a recipe. No torch here."""
