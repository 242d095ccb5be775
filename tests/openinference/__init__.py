"""Other people's clients, unmodified: each in a process of its own, for their stubs contradict ours within one."""
