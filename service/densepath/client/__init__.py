"""The client: `Client` and `AsyncClient` send sequences to a service and bring back rewards as numpy.

items     what is sent: the four forms, read and checked
plan      chunks within the service's limits, and their bodies
core      what both clients share: requests to send, answers to read, the pinned version
replicas  where a prompt belongs, and which replica is passed over for a while
exchange  one request, and how its answer is read
patience  the deadline and the retry budget of a call
retry     the attempts of one request
sync, aio   the I/O
answers   the service's answers and errors, read and checked
results   what comes back: `Score` and `Scores`
"""

from __future__ import annotations

from densepath.client.aio import AsyncClient
from densepath.client.results import Score, Scores
from densepath.client.sync import Client

__all__ = ["AsyncClient", "Client", "Score", "Scores"]
