from __future__ import annotations

from api.running import pair

__all__ = ["pair"]
