"""The subcommands, one module each, and what only they use."""
