"""A verified start: the engine, as it will serve, is held against transformers before a number leaves it.

`probes` chooses the sequences, `oracle` scores them with transformers in a process of its own, `compare`
judges the differences, `verdict` is what is told of them, `memory` remembers it, and `start` runs it all.
"""
