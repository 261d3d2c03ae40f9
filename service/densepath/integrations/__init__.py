"""Adapters for tools that train or score elsewhere: thin, each on the client, each in its own module.

A tool is imported by its own adapter alone, so importing this package needs none of them.
"""

from __future__ import annotations


class IntegrationError(RuntimeError):
    """The installed release of a tool is none that its adapter knows, or does what it cannot follow."""
