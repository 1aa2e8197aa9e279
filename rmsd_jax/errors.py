"""The exceptions that are no faults of this software."""


class UserError(Exception):
  """Bad input. The message is one line that names the value, the limit and the remedy.

  Commands print it without a traceback and exit with status 2 (see `rmsd_jax.cli`).
  """


class Terminated(Exception):
  """A run was asked to end (SIGTERM, as before a preemption), and has saved where it is.

  Commands print the message and exit with status 143.
  """
