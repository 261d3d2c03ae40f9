"""`python -m densepath.demo`: build the demo pair if it is missing, and print its measurements."""

from rich.console import Console

from densepath.demo.show import build_and_show

build_and_show(Console())
