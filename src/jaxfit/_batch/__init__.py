"""Many fits of one model."""
