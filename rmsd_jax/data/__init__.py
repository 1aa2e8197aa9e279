"""From media files and JSON Lines to padded host batches. In: records; out: the pool on disk and
`Batch`es of numpy arrays. It imports core and tasks; no jax call: it runs in Grain's workers."""
