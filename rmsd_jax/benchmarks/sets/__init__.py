"""The sets, one small file each with a `SET`; `catalogue` finds them. In: a set's folder. Out: items.

May import what else lies in `benchmarks`.
"""
