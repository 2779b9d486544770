"""A function written in NumPy, traced by JAX through NumPy's own protocols."""
