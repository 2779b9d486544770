"""Doors to other packages. Each module imports its package; `jaxfit` imports none."""
