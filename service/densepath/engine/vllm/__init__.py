"""The pair inside vLLM.

Everything that uses vLLM's internals is in this folder. `model` holds both models, `pooler` turns hidden
states into log-probabilities, `scheduler` limits the prefix-cache hit, `environment` and `arguments` define
how the engine is started, and `engine` runs it. All of it depends on one exact vLLM version
(docs/decisions/0002). If an upgrade changes an internal that is needed, `tests/engine/test_pins.py` fails and
names it.
"""

ARCHITECTURE = "DensepathPair"
HYBRID_ARCHITECTURE = "DensepathHybridPair"
