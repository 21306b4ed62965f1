"""A kernel per notebook, forked from a process that has imported what it needs."""
