"""A verified start: the engine, set up as it will serve, is compared with transformers before it answers.

`probes` chooses the sequences. `oracle` scores them with transformers in a separate process. `compare` judges
the differences. `verdict` holds what is reported about them, `memory` stores it, and `start` runs all of
this.
"""
