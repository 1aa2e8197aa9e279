"""`python -m rmsd_jax.report`: runs and teachers as tables, curves and pages. In: folders of runs,
scored questions; out: one HTML file and PNGs. It imports whatever it shows."""
