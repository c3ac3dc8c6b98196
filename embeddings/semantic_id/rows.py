"""From codes to table rows: N-grams and pieces (Singh et al. 2024, "Better Generalization with Semantic IDs")."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from embeddings.hashing import UniversalHash
from embeddings.id_map import FloatArray, IntArray
from embeddings.levels import popularity_buckets
from embeddings.semantic_id.codes import Codes

Places = tuple[IntArray, FloatArray]
"""Rows int64 [N, H] and weights float32 [N, H]; an id without any weight has no row."""
_FIRST_CHARACTER = 0xF0000
_CHARACTERS = 0xFFFE
"""Private-use characters of plane 15."""


def ngram_rows(codes: Codes, counts: IntArray, rows: int, n: int, generator: np.random.Generator) -> Places:
    """Cut a path into N-grams that do not overlap; each position has rows of its own, and the rows are summed.

    The n-grams of ids with interactions own a row where the budget allows. Where it does not, the positions with the
    most n-grams share theirs by a random hash, and a table of fewer rows than positions takes the first, coarse ones.
    Rows that are left belong to the most frequent ids, one each, in addition to their n-grams.

    Args:
        codes: int32 [N, L].
        counts: train interactions, int64 [N].
        rows: of the table, >= 1, the unseen row not counted.
        n: codes of an n-gram, 1 to L; the last one may be shorter.
        generator: draws the hash functions.

    Raises:
        ValueError: ``n`` is not in ``[1, L]``.
    """
    if not 1 <= n <= codes.shape[1]:
        raise ValueError(f"n-grams of paths of {codes.shape[1]} codes need n in [1, {codes.shape[1]}], got {n}")
    seen = counts > 0
    numbers = [_numbered(codes[:, first : first + n], seen) for first in range(0, codes.shape[1], n)][:rows]
    budget = _share_out(rows, [int(number.max(initial=-1)) + 1 for number in numbers])
    places, start = [], 0
    for number, own in zip(numbers, budget, strict=True):
        hashed = UniversalHash.draw(own, generator)(np.maximum(number, 0)) if number.max(initial=-1) >= own else number
        places.append(np.where(number >= 0, start + hashed, -1))
        start += own
    return _with_heads(np.stack(places, axis=1), counts, start, rows)


def piece_rows(codes: Codes, counts: IntArray, rows: int) -> Places:
    """Cut a path into pieces of any length by a unigram language model (Kudo 2018) with one row for each piece.

    A code is a character that knows its level, so that pieces of different levels differ. The model is trained on the
    paths of ids with interactions, as often as they have them: popular paths become one piece, rare ones several.
    A budget below the number of different codes drops the finest levels (for less than one level, see
    :func:`ngram_rows`); rows that are left go to the most frequent ids.

    Args:
        codes: int32 [N, L].
        counts: train interactions, int64 [N].
        rows: of the table, >= 1, the unseen row not counted.

    Raises:
        ImportError: sentencepiece is not installed.
        ValueError: There are more different codes than private-use characters.
    """
    seen = counts > 0
    alphabet = [np.unique(codes[seen, level]) for level in range(codes.shape[1])]
    levels = int((np.cumsum([letters.size for letters in alphabet]) <= rows).sum())
    if levels == 0 or not seen.any():
        return ngram_rows(codes[:, :1], counts, rows, 1, np.random.Generator(np.random.Philox(rows)))
    size = sum(letters.size for letters in alphabet[:levels])
    if size > _CHARACTERS:
        raise ValueError(f"SentencePiece has {_CHARACTERS:,} private-use characters, but there are {size:,} codes")
    paths = _paths(codes[:, :levels], alphabet)
    pieces = _pieces(paths, counts, rows, levels)
    width = max(len(piece) for piece in pieces)
    places = np.full((len(pieces), width), -1, dtype=np.int64)
    for item, piece in enumerate(pieces):
        places[item, : len(piece)] = [number - 1 for number in piece]  # 0 is the unknown piece
    return _with_heads(places, counts, int(places.max()) + 1, rows)


def with_popularity(found: Places, counts: IntArray, first: int, rows: int) -> Places:
    """Give ids of about the same frequency one of the rows from ``first`` to ``rows``, in addition to theirs.

    An id without interactions, but with rows, has that of the rarest ids.

    Args:
        found: rows and weights of N ids.
        counts: train interactions, int64 [N].
        first: row of the rarest ids.
        rows: of the table.
    """
    if first == rows or not counts.any():
        return found
    bucket = np.maximum(popularity_buckets(counts, rows - first), 0)
    some = (found[1] > 0).any(axis=1)
    return np.column_stack([found[0], first + bucket]), np.column_stack([found[1], some.astype(np.float32)])


def _paths(codes: Codes, alphabet: list[npt.NDArray[np.int32]]) -> list[str]:
    """A path as text; a code that no id with interactions has becomes a character that no piece has."""
    start, columns = _FIRST_CHARACTER, []
    for level in range(codes.shape[1]):
        letters = alphabet[level]
        place = np.minimum(np.searchsorted(letters, codes[:, level]), letters.size - 1)
        columns.append(np.where(letters[place] == codes[:, level], start + place, ord("?")))
        start += letters.size
    return ["".join(map(chr, row)) for row in np.column_stack(columns).tolist()]


def _pieces(paths: list[str], counts: IntArray, rows: int, longest: int) -> list[list[int]]:
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError("semantic_spm needs sentencepiece; pip install 'sentencepiece>=0.2'") from error
    text: dict[str, int] = {}
    for path, count in zip(paths, counts.tolist(), strict=True):
        if count:
            text[path] = text.get(path, 0) + count
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{path}\t{count}" for path, count in sorted(text.items())),
        model_writer=model,
        input_format="tsv",
        model_type="unigram",
        vocab_size=rows + 1,
        hard_vocab_limit=False,
        max_sentencepiece_length=longest,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    found: list[list[int]] = processor.encode(paths)
    return found


def _numbered(parts: Codes, seen: npt.NDArray[np.bool_]) -> IntArray:
    """The place of each id's n-gram among those of seen ids, in order; -1 for one that no seen id has."""
    _, group = np.unique(parts, axis=0, return_inverse=True)
    group = group.ravel()
    used = np.unique(group[seen])
    number = np.full(int(group.max(initial=-1)) + 1, -1, dtype=np.int64)
    number[used] = np.arange(used.size)
    return number[group]


def _share_out(rows: int, wanted: list[int]) -> list[int]:
    """Rows for each position: what it wants if that is no more than its share of what is left, small ones first."""
    given, left = [0] * len(wanted), rows
    order = sorted(range(len(wanted)), key=lambda position: wanted[position])
    for place, position in enumerate(order):
        given[position] = min(wanted[position], left // (len(order) - place))
        left -= given[position]
    return given


def _with_heads(places: IntArray, counts: IntArray, used: int, rows: int) -> Places:
    """Give the rows from ``used`` on to the most frequent ids, ties to the lower id, in a first column."""
    head = np.argsort(-counts, kind="stable")[: rows - used]
    head = head[counts[head] > 0]
    own = np.full(counts.size, -1, dtype=np.int64)
    own[head] = used + np.arange(head.size)
    if head.size:
        places = np.column_stack([own, places])
    return np.maximum(places, 0), (places >= 0).astype(np.float32)
