"""Many requests from a file, their answers into another."""
