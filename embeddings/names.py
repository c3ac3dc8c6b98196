"""Names that configurations use, apart from the code that they name, which is slow to import."""

from __future__ import annotations

from typing import Literal, get_args

CompressorName = Literal[
    "full",
    "modulo",
    "universal_hash",
    "double_hash",
    "head",
    "frequency",
    "double_frequency",
    "quotient_remainder",
    "lsh",
    "graphhash",
    "double_graphhash",
    "baco",
    "multi_graphhash",
    "residual_codes",
    "semantic_ngram",
    "semantic_spm",
]
COMPRESSORS: tuple[str, ...] = get_args(CompressorName)
CLUSTERED: tuple[str, ...] = ("graphhash", "double_graphhash")
"""Those whose rows are the clusters of one clustering of the graph."""
GRAPH: tuple[str, ...] = (*CLUSTERED, "baco", "multi_graphhash", "residual_codes")
"""Those whose rows are groups of the graph's nodes, of one clustering or of several."""
WITHOUT_NARROW: tuple[str, ...] = ("full", *CLUSTERED)
"""Those that have no narrow rows beside theirs."""
SEMANTIC: tuple[str, ...] = ("semantic_ngram", "semantic_spm")
"""Those that take codes of the ids."""
