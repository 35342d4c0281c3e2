"""The supervisor's process: it listens, forks the other processes, watches over them and stops them."""
