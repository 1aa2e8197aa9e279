"""The sets, one small file each with a `SET`, which `catalogue` finds.

In: a set's folder. Out: items, what is asked about them, grades.
May import what else lies in `benchmarks`.
"""
