"""Programs for contributors: what generates docs, completions, the man page and the dashboard."""
