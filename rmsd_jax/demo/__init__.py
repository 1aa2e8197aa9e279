"""A world small enough for one CPU: clips, questions, a simulated teacher, a tiny base, the whole
method on them, and the grid of ablations. It starts the commands; nothing imports it."""
