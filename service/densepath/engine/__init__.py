"""Takes sequences and returns the log-probabilities of both models.

`Scorer` is the interface. `vllm` is the real engine, `transformers` is the oracle that tests trust, and
`fake` is an engine with switches for faults.
"""
