from __future__ import annotations

from tests.hosts.conftest import folders, host, kind, model_of, oracle_of

__all__ = ["folders", "host", "kind", "model_of", "oracle_of"]
