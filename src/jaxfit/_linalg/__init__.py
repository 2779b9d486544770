"""Small matrices, written once for one fit and for lanes of fits."""
