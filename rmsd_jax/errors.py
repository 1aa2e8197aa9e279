"""The one exception that means "the user can fix this"."""


class UserError(Exception):
  """Bad input. The message is one line that names the value, the limit and the remedy.

  Commands print it without a traceback and exit with status 2 (see `rmsd_jax.cli`).
  """
