"""What codes must be before anything is trained on them: faithful, well used, distinct, and a hierarchy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from embeddings.semantic_id.codes import SemanticCodes
from embeddings.spectral import Matrix

PAIRS = 20_000
"""Pairs of items sampled for each length of a shared prefix."""


@dataclasses.dataclass(frozen=True)
class Gates:
    """Bounds; a code book beyond one of them stops the run.

    Attributes:
        max_error: reconstruction error over the variance of the vectors, in [0, 1].
        min_usage: share of a level's codes that have an item (of the items where those are fewer).
        min_entropy: entropy of a level over that of a uniform one.
        max_colliding: share of items that share their code with another one.
        max_prefix_share: share of items below one first code; None for a quarter, or twice an even share where there
            are fewer than eight first codes.
        hierarchy: whether a longer shared prefix must mean a higher mean cosine.
    """

    max_error: float = 0.9
    min_usage: float = 0.5
    min_entropy: float = 0.6
    max_colliding: float = 0.5
    max_prefix_share: float | None = None
    hierarchy: bool = True


class GateError(ValueError):
    """Codes that a quality gate refuses; the message has every failed gate and what to change."""


def measure(
    codes: SemanticCodes, vectors: Matrix | None, decoded: Matrix | None, generator: np.random.Generator
) -> dict[str, Any]:
    """JSON-able quality of codes.

    Args:
        codes: of N items, before collisions are resolved.
        vectors: float32 [N, D] that were coded; none for codes without vectors.
        decoded: float32 [N, D] that the codes stand for; none where codes have no codebook.
        generator: samples pairs for the hierarchy.

    Returns:
        ``levels`` (width, used, usage, entropy, perplexity of each), ``colliding`` (items), ``colliding_share``,
        ``distinct``, ``largest_collision``, ``prefix_share`` (of the largest first code), ``error`` (mean squared
        error over variance, or None) and ``hierarchy`` (``{"shared", "pairs", "cosine"}`` by prefix length, see
        :func:`hierarchy`).
    """
    sizes = np.unique(codes.codes, axis=0, return_counts=True)[1]
    first = np.bincount(codes.codes[:, 0], minlength=1)
    return {
        "items": codes.num_items,
        "widths": list(codes.widths),
        "levels": [_level(codes, level) for level in range(codes.levels)],
        "distinct": codes.distinct,
        "colliding": int(codes.colliding.size),
        "colliding_share": codes.colliding.size / max(1, codes.num_items),
        "largest_collision": int(sizes.max(initial=0)),
        "prefix_share": float(first.max() / max(1, codes.num_items)),
        "error": None if vectors is None or decoded is None else reconstruction_error(vectors, decoded),
        "hierarchy": [] if vectors is None else hierarchy(codes, vectors, generator),
    }


def _level(codes: SemanticCodes, level: int) -> dict[str, Any]:
    """Entropy in bits, and over the most that so many items and codes can have."""
    counts = np.bincount(codes.codes[:, level], minlength=codes.widths[level])
    share = counts[counts > 0] / max(1, codes.num_items)
    entropy = float(-(share * np.log2(share)).sum())
    possible = max(1, min(codes.widths[level], codes.num_items))
    return {
        "width": codes.widths[level],
        "used": int((counts > 0).sum()),
        "usage": float((counts > 0).sum() / possible),
        "entropy": entropy,
        "entropy_share": entropy / np.log2(possible) if possible > 1 else 1.0,
        "largest": int(counts.max(initial=0)),
    }


def reconstruction_error(vectors: Matrix, decoded: Matrix) -> float:
    """``sum |x - x'|^2 / sum |x - mean|^2``: 0 is perfect, 1 is what the mean alone gives; 0 for equal vectors."""
    spread = float(np.square(_centred(vectors), dtype=np.float64).sum())
    left = float(np.square(vectors - decoded, dtype=np.float64).sum())
    return left / spread if spread > 0 else 0.0


def _centred(vectors: Matrix) -> Matrix:
    mean: Matrix = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return vectors - mean


def hierarchy(codes: SemanticCodes, vectors: Matrix, generator: np.random.Generator) -> list[dict[str, Any]]:
    """Mean cosine of pairs of items that share a prefix of exactly 0, 1, .. codes (Singh et al. 2024, table 1).

    Pairs are neighbours in a random order within a prefix, so that each item has about as many as any other.

    Args:
        codes: of N items.
        vectors: float32 [N, D]; the cosine is that of the centred vectors.
        generator: draws the orders.

    Returns:
        One entry for each length of which there are pairs.
    """
    centred = _centred(vectors)
    norms = np.sqrt(np.einsum("nd,nd->n", centred, centred))
    unit = centred / np.maximum(norms, np.float32(1e-12))[:, None]
    pairs: list[list[np.ndarray[Any, np.dtype[np.int64]]]] = [[] for _ in range(codes.levels + 1)]
    for length in range(codes.levels + 1):
        shuffled = generator.permutation(codes.num_items)
        if length:
            shuffled = shuffled[np.lexsort(codes.codes[shuffled, :length].T[::-1])]
        a, b = shuffled[:-1], shuffled[1:]
        same = np.cumprod(codes.codes[a] == codes.codes[b], axis=1).sum(axis=1)
        for shared in range(codes.levels + 1):
            pairs[shared].append(np.stack([a[same == shared], b[same == shared]]))
    found = []
    for shared, parts in enumerate(pairs):
        a, b = np.concatenate(parts, axis=1)[:, :PAIRS]
        if a.size:
            cosine = float(np.einsum("nd,nd->n", unit[a], unit[b]).mean(dtype=np.float64))
            found.append({"shared": shared, "pairs": int(a.size), "cosine": cosine})
    return found


def check(quality: dict[str, Any], gates: Gates) -> None:
    """Refuse codes that are beyond a bound.

    Args:
        quality: what :func:`measure` gave.
        gates: the bounds.

    Raises:
        GateError: At least one gate failed; the message has all of them, with the figure, the bound and the remedy.
    """
    failed = []
    if quality["error"] is not None and quality["error"] > gates.max_error:
        failed.append(
            f"reconstruction error {quality['error']:.3f} > max_error {gates.max_error:g}:"
            " add a level, widen the levels, or train longer"
        )
    for level, facts in enumerate(quality["levels"], start=1):
        for name, least in (("usage", gates.min_usage), ("entropy_share", gates.min_entropy)):
            if facts[name] < least:
                failed.append(
                    f"level {level} has {name} {facts[name]:.3f} < min_{name.removesuffix('_share')} {least:g}"
                    f" ({facts['used']} of {facts['width']} codes used): make it narrower, use balanced k-means,"
                    " or check the features for duplicates"
                )
    if quality["colliding_share"] > gates.max_colliding:
        failed.append(
            f"{quality['colliding']:,} of {quality['items']:,} items share their code, a share above max_colliding"
            f" {gates.max_colliding:g}: add a level or use features that tell items apart"
        )
    most = gates.max_prefix_share
    if most is None:
        most = max(0.25, 2 / quality["widths"][0])
    if quality["prefix_share"] > most:
        failed.append(
            f"one first code has a share of {quality['prefix_share']:.3f} of the items, above max_prefix_share"
            f" {most:g}: use balanced k-means or look for items without content"
        )
    cosines = [entry["cosine"] for entry in quality["hierarchy"]]
    if gates.hierarchy and len(cosines) > 1 and cosines[-1] <= cosines[0]:
        failed.append(
            f"items with a longest shared prefix have mean cosine {cosines[-1]:.3f}, those with none {cosines[0]:.3f}:"
            " the codes are no hierarchy of these features; tokenise the features that the codes are checked against"
        )
    if failed:
        raise GateError("semantic codes fail " + f"{len(failed)} quality gate(s):\n- " + "\n- ".join(failed))
