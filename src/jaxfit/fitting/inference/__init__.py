"""Intervals, bands, and what a fit is worth."""
