"""One self-contained report of a run: HTML for people, Markdown for reviews. Reads records only."""
