"""What a server needs before a machine may swap on it: safeguards, requirements, pages taken in advance."""
