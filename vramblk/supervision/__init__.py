"""The parts of the supervisor: listening, forking, watching over what was forked, and stopping."""
