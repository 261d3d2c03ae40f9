"""Refusing early what could not be answered in time. vLLM's scheduler is the batcher: there is no second."""

from densepath.admission.budget import Ticket, TokenBudget

__all__ = ["Ticket", "TokenBudget"]
