"""The map from ids to table rows that every compressor makes and every table takes."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from embeddings import atomic

FORMAT = "recsys id map 1"

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Narrow:
    """The last rows of a table, which have only its first columns (mixed dimensions: Ginart et al. 2019).

    Attributes:
        rows: how many.
        share: of the columns, in (0, 1).

    Raises:
        ValueError: There is no such row, or the share is out of range.
    """

    rows: int
    share: float

    def __post_init__(self) -> None:
        """Refuse what no table can have."""
        if self.rows < 1 or not 0 < self.share < 1:
            raise ValueError(f"narrow rows are at least 1, of a share in (0, 1), got {self.rows} of {self.share}")

    def columns(self, dim: int) -> int:
        """Of a narrow row, where the others have ``dim``: at least 1."""
        return max(1, round(self.share * dim))


@dataclasses.dataclass(frozen=True)
class IdMap:
    """For each of N entities, H table rows whose weighted sum is its embedding.

    Attributes:
        rows: int64 [N, H], each in ``[0, num_rows)``.
        num_rows: rows of the table, the unseen row included.
        unseen_row: row for ids without a training interaction and for ids outside ``[0, N)``; no seen id uses it.
        compressor: name of the compressor that made the map.
        weights: float32 [N, H] or None for all ones.
        info: JSON-able facts for the report (resolution, modularity, seconds, ...).
        narrow: the last rows, if they have fewer columns than the others; the unseen row is not one of them.

    Raises:
        ValueError: A row is outside ``[0, num_rows)``, or shapes or dtypes disagree; the message has the first bad id.
    """

    rows: IntArray
    num_rows: int
    unseen_row: int
    compressor: str
    weights: FloatArray | None = None
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    narrow: Narrow | None = None

    def __post_init__(self) -> None:
        """Check every row once, so that no table has to."""
        if self.rows.ndim != 2 or self.rows.shape[1] < 1:
            raise ValueError(f"IdMap.rows must have shape [N, H] with H >= 1, got {list(self.rows.shape)}")
        if self.rows.dtype != np.int64:
            raise ValueError(f"IdMap.rows must be int64, got {self.rows.dtype}; convert with rows.astype(np.int64)")
        if self.weights is not None and self.weights.shape != self.rows.shape:
            raise ValueError(
                f"IdMap.weights must have the shape of rows {list(self.rows.shape)}, got {list(self.weights.shape)}"
            )
        if self.weights is not None and self.weights.dtype != np.float32:
            raise ValueError(f"IdMap.weights must be float32, got {self.weights.dtype}")
        bad = np.flatnonzero(((self.rows < 0) | (self.rows >= self.num_rows)).any(axis=1))
        if bad.size:
            raise ValueError(
                f"IdMap rows must lie in [0, {self.num_rows}), but id {bad[0]} has rows {self.rows[bad[0]].tolist()}"
                f" ({bad.size:,} bad ids in all)"
            )
        if not 0 <= self.unseen_row < self.num_rows:
            raise ValueError(f"IdMap.unseen_row must lie in [0, {self.num_rows}), got {self.unseen_row}")
        if self.unseen_row >= self.wide_rows:
            raise ValueError(f"row {self.unseen_row} is narrow and cannot be the unseen row; see IdMap.narrow")

    @classmethod
    def identity(cls, count: int) -> IdMap:
        """Every one of ``count`` ids has a row of its own, and the unseen row is the last."""
        return cls(np.arange(count, dtype=np.int64)[:, None], num_rows=count + 1, unseen_row=count, compressor="full")

    @property
    def num_ids(self) -> int:
        """N, the number of known entities."""
        return int(self.rows.shape[0])

    @property
    def wide_rows(self) -> int:
        """The rows with all columns, which come first."""
        return self.num_rows - (self.narrow.rows if self.narrow else 0)

    @property
    def rows_per_id(self) -> int:
        """H, the number of rows summed for one entity."""
        return int(self.rows.shape[1])

    def lookup(self, ids: IntArray) -> IntArray:
        """Rows [len(ids), H] of any int64 ids; an id outside ``[0, N)`` gets the unseen row in its first place.

        The other H-1 places of an unknown id repeat the unseen row with weight zero, see :meth:`lookup_weights`.
        """
        known = (ids >= 0) & (ids < self.num_ids)
        rows = np.full((len(ids), self.rows_per_id), self.unseen_row, dtype=np.int64)
        rows[known] = self.rows[ids[known]]
        return rows

    def lookup_weights(self, ids: IntArray) -> FloatArray:
        """Weights float32 [len(ids), H] that belong to :meth:`lookup`."""
        known = (ids >= 0) & (ids < self.num_ids)
        weights = np.zeros((len(ids), self.rows_per_id), dtype=np.float32)
        weights[:, 0] = 1.0
        weights[known] = 1.0 if self.weights is None else self.weights[ids[known]]
        return weights

    def uses(self) -> tuple[IntArray, IntArray]:
        """Each (id, row) with a non-zero weight once, ordered by id then row."""
        ids = np.repeat(np.arange(self.num_ids, dtype=np.int64), self.rows_per_id)
        flat = self.rows.ravel()
        if self.weights is not None:
            used = self.weights.ravel() != 0
            ids, flat = ids[used], flat[used]
        if self.rows_per_id == 1:
            return ids, flat
        pairs = np.unique(ids * self.num_rows + flat)
        return pairs // self.num_rows, pairs % self.num_rows

    def save(self, path: Path) -> None:
        """Write ``path`` (safetensors, the facts as JSON in its header), atomically; equal maps give equal bytes."""
        tensors = {"rows": np.ascontiguousarray(self.rows)}
        if self.weights is not None:
            tensors["weights"] = np.ascontiguousarray(self.weights)
        facts = json.dumps(
            {
                "format": FORMAT,
                "num_rows": self.num_rows,
                "unseen_row": self.unseen_row,
                "compressor": self.compressor,
                "info": self.info,
                **({"narrow": dataclasses.asdict(self.narrow)} if self.narrow else {}),
            },
            sort_keys=True,
        )
        header = {"id_map": f"{_checksum(facts, tensors):08x}{facts}"}
        atomic.write_bytes(path, safetensors.numpy.save(tensors, metadata=header))

    @classmethod
    def load(cls, path: Path) -> IdMap:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The file is foreign, truncated or damaged; the message names the path.
            FileNotFoundError: There is no such file.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                header = (file.metadata() or {}).get("id_map", "")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (safetensors.SafetensorError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); build the id map again") from error
        checksum, text = header[:8], header[8:]
        if FORMAT not in text:
            raise ValueError(f"{path} is not an id map: its header must say {FORMAT!r}, got {header[:80]!r}")
        if checksum != f"{_checksum(text, tensors):08x}":
            raise ValueError(f"{path} is damaged: its checksum does not fit its content; build the id map again")
        facts = json.loads(text)
        try:
            return cls(
                rows=tensors["rows"],
                num_rows=int(facts["num_rows"]),
                unseen_row=int(facts["unseen_row"]),
                compressor=str(facts["compressor"]),
                weights=tensors.get("weights"),
                info=facts["info"],
                narrow=Narrow(**facts["narrow"]) if "narrow" in facts else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no valid id map: {error}") from error


def _checksum(facts: str, tensors: dict[str, Any]) -> int:
    checksum = zlib.crc32(facts.encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].tobytes(), zlib.crc32(name.encode(), checksum))
    return checksum
