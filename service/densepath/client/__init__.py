"""The client: `Client` and `AsyncClient` send sequences to a service and bring back rewards as numpy.

items     what is sent: reads and checks the four forms
plan      splits the items into chunks within the service's limits, and makes their bodies
core      what both clients share: requests to send, answers to read, the pinned version
replicas  which replica a prompt belongs to, and which replica is skipped for a while
exchange  one request, and how its answer is read
patience  the deadline and the retry budget of a call
retry     the attempts of one request
sync, aio   the I/O
answers   reads and checks the service's answers and errors
results   what comes back: `Score` and `Scores`
"""

from __future__ import annotations

from densepath.client.aio import AsyncClient
from densepath.client.results import Score, Scores
from densepath.client.sync import Client

__all__ = ["AsyncClient", "Client", "Score", "Scores"]
