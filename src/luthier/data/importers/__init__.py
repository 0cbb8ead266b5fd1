"""Configurations of other trainers into recipes, with an account of every key."""
