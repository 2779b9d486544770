"""Fits in words, pictures and files."""
