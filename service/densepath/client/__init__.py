"""The client: `Client` and `AsyncClient` send sequences to a service and bring back rewards as numpy.

items     what is sent: reads and checks the four forms
plan      splits the items into chunks within the service's limits, and makes their bodies
core      what both clients share: requests to send, answers to read, the pinned version
replicas  which replica a prompt belongs to, and which replica is skipped for a while
gate      whether a replica may be sent a request now: circuit breaker, retry budget, one log line per outage
exchange  one request, and how its answer is received and read
patience  the deadline of a call
retry     the attempts of one request
network   the deadline on the sockets of the synchronous client
sync, aio   the I/O
answers   reads and checks the service's answers and errors
results   what comes back: `Score` and `Scores`
"""

from __future__ import annotations

from densepath.client.aio import AsyncClient
from densepath.client.results import Score, Scores
from densepath.client.sync import Client

__all__ = ["AsyncClient", "Client", "Score", "Scores"]
