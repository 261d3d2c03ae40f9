"""Thin adapters for other training and scoring tools. Each is a module of its own that uses the client.

Only its own adapter imports a tool, so importing this package needs none of them.
"""

from __future__ import annotations


class IntegrationError(RuntimeError):
    """The adapter does not know the installed release of a tool, or the tool did something unexpected."""
