"""The cache of row_cache.py in the shape that transformers' models take: one of its own layers, kept in roomy buffers.

Layers with a sliding window keep everything, too: their masks leave out what lies beyond it, and a cache that has
dropped nothing can be cut anywhere.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from convai.model.row_cache import CacheOfRows, LayerRows


class _Layer(LayerRows, DynamicLayer):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        DynamicLayer.__init__(self)  # type: ignore[no-untyped-call]
        LayerRows.__init__(self)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.append(key_states, value_states)

    def _show(self) -> None:
        super()._show()
        self.is_initialized = self.keys is not None  # for the lengths that masks are made by


class DecoderCache(CacheOfRows, DynamicCache):
    """What a batch of rows has read with a decoder of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = _Layer
