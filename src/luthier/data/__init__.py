"""Read, map, check, profile, split, render, pack and collate rows. Import from submodules; no torch here."""
