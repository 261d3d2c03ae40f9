"""Refuses requests early if they could not be answered in time. vLLM's scheduler alone makes the batches."""

from densepath.admission.bodies import ByteBudget, Hold
from densepath.admission.budget import Ticket, TokenBudget
from densepath.admission.quota import TokenQuotas

__all__ = ["ByteBudget", "Hold", "Ticket", "TokenBudget", "TokenQuotas"]
