"""Sequences in, the log-probabilities of both models out.

`Scorer` is the interface; `vllm` is the real engine, `transformers` the oracle that tests trust, `fake`
an engine with switches for faults.
"""
