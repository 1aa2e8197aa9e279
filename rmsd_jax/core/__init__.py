"""What every folder builds on: the prompt group, sums under masks, positions, parameters by name,
the mesh, intervals, errors, files, progress. In and out: arrays, trees, text. It imports no other
folder, no flax, and reads no config."""
