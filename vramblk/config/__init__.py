"""The server's settings: the table of options, their sources, the checked values."""
