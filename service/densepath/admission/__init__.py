"""Refuses requests early if they could not be answered in time. vLLM's scheduler alone makes the batches."""

from densepath.admission.budget import Ticket, TokenBudget

__all__ = ["Ticket", "TokenBudget"]
