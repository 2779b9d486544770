"""One fit: begin with `solve.py`, and then `trip.py`."""
