"""`python -m rmsd_jax.compile`: does a run fit chips that are not here, and what bounds it? Work by
formulas, traffic off the compiled program. It imports the trainers' programs."""
