"""Measurements of the product beside its rivals and its floor, in one run: `python -m bench`.

The figures that count are kept in docs/performance.md, between markers that this command writes anew.
"""
