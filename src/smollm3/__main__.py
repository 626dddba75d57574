"""`python -m smollm3` is the command line."""

from smollm3.cli import main

main()
