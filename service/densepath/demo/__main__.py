"""`python -m densepath.demo`: build the demo pair where it is missing, and print what was measured."""

from rich.console import Console

from densepath.demo.show import build_and_show

build_and_show(Console())
