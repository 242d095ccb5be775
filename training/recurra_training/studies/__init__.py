"""Looks at how gradients travel through time: where they vanish, where they explode, and what helps."""
