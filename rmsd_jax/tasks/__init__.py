"""What a question asks for and how a reply to it is graded, in plain Python. In: text and ground
truth; out: rule terms, validity, quality. It imports core's errors, no jax: it runs in workers."""

from rmsd_jax.tasks.quality import Rules
from rmsd_jax.tasks.registry import CHAT, READINGS, Example, new_task

__all__ = ["CHAT", "READINGS", "Example", "Rules", "new_task"]
