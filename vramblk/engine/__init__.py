"""The engine's process: it owns the memory of the exports and executes what the workers ask for."""
