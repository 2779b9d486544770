"""Residual rows, however many and wherever they lie, as n x n numbers."""
