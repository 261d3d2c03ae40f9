"""`python -m densepath`."""

from densepath.cli import main

main()
