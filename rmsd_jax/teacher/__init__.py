"""Teachers before any training: collecting their replies, checking, scoring and planning them, and
the paper's study of their variance. In: JSON Lines; out: JSON Lines, figures, findings. It imports
core, data and tasks."""
