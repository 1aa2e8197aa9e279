"""What both stages need around a step: state, optimizer, checkpoints, log, and the loop of a run.
It imports core, models, tasks, data, method; the step itself is in the trainers."""
