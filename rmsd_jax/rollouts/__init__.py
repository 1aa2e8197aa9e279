"""What the student says: sampling many replies per prompt, and grading them. In: parameters and
prompt groups; out: `Samples`, texts, rule terms. It imports core, models, tasks, data, method."""
