"""The pair inside vLLM.

Everything that touches vLLM's internals is in this folder: `model` holds both models, `pooler` turns hidden
states into log-probabilities, `scheduler` caps the prefix-cache hit, `environment` and `arguments` say how
the engine is started, `engine` runs it. They stand on one vLLM version (docs/decisions/0002):
`tests/engine/test_pins.py` fails in words when an upgrade moves what they need.
"""

ARCHITECTURE = "DensepathPair"
