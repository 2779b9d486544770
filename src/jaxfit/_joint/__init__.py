"""Parameters that all blocks of rows share, and others of each block alone."""
