"""Memory that the processes share: windows, rings, counters, the control page, written-maps.

Everything here is made by the supervisor before it forks. Each word has one writing process,
so nothing is locked; see ``barrier.py`` for the one place where order between a store and a
later load matters.
"""
