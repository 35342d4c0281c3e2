"""The soak run: clients, chaos, and a model of which values each 16 bytes of an export may hold.

``python -m tests.soak --help`` says how to run it. It relies on the wire, signals, process names and two
interfaces inside the engine (``Memory.execute`` and ``HotCalls``), so it outlives a rewrite of the data path.
"""
