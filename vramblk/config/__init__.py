"""What the server is told to do: the table of options, their sources, the checked settings."""
