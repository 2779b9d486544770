"""SciPy's front doors."""
