"""Directions in the files of other tools, both ways, and from activations that you already have (docs/interchange.md)."""

from unlock_lens.interchange.caches import from_caches, states
from unlock_lens.interchange.engines import EngineEdit, to_engine
from unlock_lens.interchange.gguf import from_gguf, to_gguf
from unlock_lens.interchange.torch_files import (
    from_lm_eval,
    from_steering_vectors,
    from_tensors,
    to_lm_eval,
    to_steering_vectors,
)

__all__ = [
    "EngineEdit", "from_caches", "from_gguf", "from_lm_eval", "from_steering_vectors", "from_tensors", "states",
    "to_engine", "to_gguf", "to_lm_eval", "to_steering_vectors",
]  # fmt: skip
