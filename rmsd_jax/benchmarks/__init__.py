"""The paper's evaluation sets: official files -> records of a pool; responses -> scores and cards.

In: a set's own files and media, and what `evaluate` answered. Out: JSON Lines for `pool build`, a
score card, tables, other harnesses' files. May import core, tasks and data; no jax, but for
`running`, which runs `pool build` and `evaluate` in turn.

A set is one file of `sets/`; what sets share (readers, extractors, metrics) lies here.
"""
