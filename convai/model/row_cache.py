"""Keys and values of what a batch of rows has read, where rows come and go and every one grows by a token at a time.

All rows end at the same column, so a shorter one has columns before it that are not its own; these hold old numbers or
zeros, and whoever attends masks them. Columns are distances: what a sliding window reaches is where it should be.

Tokens go into buffers with room on both sides, which are copied once in ROOM tokens, and rows into slots: one that
comes or goes moves its own numbers only. transformers' DynamicCache copies everything for each token.

Shapes: B rows, K columns, Q new tokens, H heads, D width of a head.
"""

from typing import Any, Self

from torch import Tensor

ROOM = 64  # columns


class LayerRows:
    """One layer's keys and values, (B, H, K, D) each."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._buffers: tuple[Tensor, ...] = ()  # (slots, H, columns, D): keys, values
        self._start = self._end = self._n_rows = 0

    @property
    def width(self) -> int:
        """K, the columns in use."""
        return self._end - self._start

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take in keys and values (B, H, Q, D) of new tokens, and return those of all so far."""
        n_rows, n_new = key.shape[0], key.shape[2]
        if not self._buffers:
            self._n_rows = n_rows
            self._buffers = tuple(_zeros(x, n_rows, n_new + ROOM) for x in (key, value))
        elif self._end + n_new > self._buffers[0].shape[2]:
            self._move(min(self._buffers[0].shape[0], 2 * n_rows), self.width, n_new)
        for buffer, new in zip(self._buffers, (key, value), strict=True):
            buffer[:n_rows, :, self._end : self._end + n_new] = new
        self._end += n_new
        self._show()
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _show(self) -> None:
        used = slice(self._start, self._end)
        shown = [buffer[: self._n_rows, :, used] for buffer in self._buffers]
        self.keys, self.values = shown or (None, None)

    def _move(self, n_slots: int, width: int, n_new: int = 0) -> None:
        """Move to buffers with that many slots, for a width of columns, `n_new` more, and ROOM on each side."""
        end = ROOM + width
        columns = slice(end - self.width, end)
        moved = []
        for buffer in self._buffers:
            roomy = _zeros(buffer, n_slots, end + n_new + ROOM)
            roomy[: self._n_rows, :, columns] = buffer[: self._n_rows, :, self._start : self._end]
            moved.append(roomy)
        self._buffers, self._start, self._end = tuple(moved), columns.start, end

    def join(self, other: Self) -> None:
        """Take in the rows of another, which is not to be used any more."""
        if not self._n_rows:
            self._buffers, self._n_rows = other._buffers, other._n_rows
            self._start, self._end = other._start, other._end
        else:
            n_rows, n_slots = self._n_rows + other._n_rows, self._buffers[0].shape[0]
            if n_rows > n_slots or other.width > self._end:
                n_slots = n_slots if n_rows <= n_slots else max(n_rows, n_slots + n_slots // 2)
                self._move(n_slots, max(self.width, other.width))
            start = self._end - other.width
            for buffer, theirs in zip(self._buffers, other._buffers, strict=True):
                rows = theirs[: other._n_rows, :, other._start : other._end]
                buffer[self._n_rows : n_rows, :, start : self._end] = rows
            self._n_rows, self._start = n_rows, min(self._start, start)
        self._show()

    def drop(self, row: int) -> None:
        """Leave out a row; the last one takes its place."""
        if not self._buffers:  # of a layer that has no keys of its own
            return
        self._n_rows -= 1
        if not self._n_rows:
            self._buffers, self._start, self._end = (), 0, 0
        if row < self._n_rows:
            for buffer in self._buffers:
                used = buffer[:, :, self._start : self._end]
                used[row] = used[self._n_rows]
        self._show()

    def narrow(self, width: int) -> None:
        """Keep the last columns, which are all that rows of at most this width have."""
        if self._buffers:
            self._start = self._end - width
            self._show()

    def part(self, row: int, start: int, end: int) -> Self:
        """Return a copy of one row's columns from `start` to `end`."""
        copy = type(self)()
        if self.keys is not None and self.values is not None:
            copy.append(self.keys[row : row + 1, :, start:end], self.values[row : row + 1, :, start:end])
        return copy


def _zeros(like: Tensor, n_slots: int, n_columns: int) -> Tensor:
    # Zeros cost nothing until they are written to; what empty memory holds may be NaN, which no mask makes up for.
    return like.new_zeros(n_slots, like.shape[1], n_columns, like.shape[3])


class CacheOfRows:
    """What a batch has read, in all layers (`layers`, of LayerRows, which are made as they are needed)."""

    layers: list[Any]

    @property
    def width(self) -> int:
        """K, the tokens of the longest row."""
        return max((layer.width for layer in self.layers), default=0)

    def join(self, other: Self) -> None:
        """Take in the rows of another, behind one's own; the other is not to be used any more."""
        while len(self.layers) < len(other.layers):
            self.layers.append(type(other.layers[0])())
        for own, theirs in zip(self.layers, other.layers, strict=True):
            own.join(theirs)

    def drop(self, row: int) -> None:
        """Leave out a row; the last one takes its place."""
        for layer in self.layers:
            layer.drop(row)

    def narrow(self, width: int) -> None:
        """Leave out columns before those that rows of at most this width have."""
        if width < self.width:
            for layer in self.layers:
                layer.narrow(width)

    def part(self, row: int, length: int, n_kept: int) -> Self:
        """Return a copy of the first `n_kept` tokens of a row that has `length` of them."""
        copy = type(self)()
        start = self.width - length
        copy.layers.extend(layer.part(row, start, start + n_kept) for layer in self.layers)
        return copy


class RowCache(CacheOfRows):
    """The cache of GPT and GPT-2 (see transformer.KeyValueCache); that of other decoders is decoder_cache.py's."""

    def __init__(self) -> None:
        self.layers: list[LayerRows] = []

    def update(self, key: Tensor, value: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        """Take in a layer's keys and values (B, H, Q, D) of new tokens, and return those of all so far."""
        if layer == len(self.layers):
            self.layers.append(LayerRows())
        return self.layers[layer].append(key, value)
