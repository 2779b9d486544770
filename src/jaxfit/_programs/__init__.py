"""What is compiled: once for all that is alike, how, and in which precision."""
