"""TIGER (Rajput et al. 2023, "Recommender systems with generative retrieval"): write the next item's semantic id."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from embeddings.hashing import UniversalHash
from embeddings.semantic_id.codes import SemanticCodes
from recsys.beam_search import beam_search, seen_keys
from recsys.code_trie import CodeTrie
from recsys.dropout import Dropout
from recsys.jagged_attention import Block, blocks
from recsys.models.dense_head import DenseHead
from recsys.models.t5 import OFF, T5, Decoding, Memory, T5Shape
from recsys.rng import generator as named_generator
from recsys.sequences import Batch, Sequences

_START = 0
_NUMBERS_AT_ONCE = 1 << 24
"""Of the widest array of a search: a beam's logits, or its hidden layer."""
Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a history becomes tokens.

    Attributes:
        max_items: events that are read; older ones are left out.
        user_tokens: rows that users are hashed to, read before the history (the paper's 2,000); with 1 all share it.

    Raises:
        ValueError: A number is below 1.
    """

    max_items: int = 20
    user_tokens: int = 1

    def __post_init__(self) -> None:
        """Refuse what reads nothing."""
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"Reading.{name} must be at least 1, got {value}")


class Tiger(nn.Module):
    """A :class:`recsys.retriever.GeneratingRetriever`: a T5 that reads and writes the codes of items.

    A token is a code of a level, of a user, or the start. The score of an item is the log-probability of its path,
    the softmax running over the whole vocabulary as in the paper. With a :class:`DenseHead` it is LIGER (Yang et al.
    2024): the encoder reads the items' content too, and its output at the last token ranks what the search finds.

    Args:
        codes: of the catalogue, one path for each item.
        histories: what each user did, as far as the model may know.
        shape: of the transformer.
        reading: of the histories.
        beam: prefixes that a search keeps, at least; as many as items are asked for, if that is more.
        dropout: share of the numbers that a training step drops.
        dense: LIGER's dense head, which ranks what the search finds and brings cold items in; None for TIGER alone.
        generator: draws the parameters.

    Attributes:
        paths: int64 [N, L], the tokens of each item.

    Raises:
        ValueError: Two items share their codes, ``beam`` is below 1, or ``dense`` is of another catalogue.
    """

    def __init__(
        self, codes: SemanticCodes, histories: Sequences, shape: T5Shape, reading: Reading, *,
        beam: int = 50, dropout: float = 0.1, dense: DenseHead | None = None, generator: np.random.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        if beam < 1:
            raise ValueError(f"beam must be at least 1, got {beam}")
        if dense is not None and len(dense.content) != codes.num_items:
            raise ValueError(f"content must have the {codes.num_items} items of the codes, got {len(dense.content)}")
        self.codes, self.histories, self.reading = codes, histories, reading
        self.beam, self.dropout, self.dense = beam, dropout, dense
        self._trie = CodeTrie.of(codes)
        self._starts = 1 + np.concatenate([[0], np.cumsum(codes.widths)]).astype(np.int64)
        self.paths = codes.codes.astype(np.int64) + self._starts[:-1]
        self._hash = UniversalHash.draw(reading.user_tokens, named_generator(0, "tiger", "users"))
        self.transformer = T5(int(self._starts[-1]) + reading.user_tokens, shape, generator)

    @property
    def num_users(self) -> int:
        """Users with a place among the histories, those without an event included."""
        return self.histories.num_users

    @property
    def num_items(self) -> int:
        """Items with codes."""
        return self.codes.num_items

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.transformer.embedding.device

    def tokens(self, batch: Batch) -> tuple[Ints, Ints]:
        """What B histories are read as: their tokens int64 [T], each user's own first, and lengths int64 [B]."""
        tokens = self._after_user(self.paths[batch.items], batch, self._starts[-1] + self._hash(batch.users))
        return tokens, 1 + batch.lengths * self.codes.levels

    def _after_user(self, values: Ints, batch: Batch, first: Ints | int) -> Ints:
        """Values [events, L] of the items' tokens in a row, int64 [T], each user's ``first`` before their own."""
        lengths = batch.lengths * self.codes.levels
        return np.insert(values.reshape(-1), np.cumsum(lengths) - lengths, first)

    def encode(
        self, batch: Batch, dropout: Dropout = OFF, contents: Tensor | None = None
    ) -> Iterator[tuple[slice, Memory]]:
        """Read histories, block by block, so that little is spent on padding.

        Args:
            batch: histories of at most ``reading.max_items`` events; sorted by length they make the fewest blocks.
            dropout: switched off outside of training.
            contents: float32 [N, D], the :meth:`DenseHead.items` of a model with a dense head; None computes them.

        Yields:
            The rows of the batch, and what the decoder reads of them.
        """
        tokens, lengths = self.tokens(batch)
        beside = self._beside_codes(batch, contents)
        # A GPU takes one large block sooner than several small ones.
        parts = blocks(lengths, shortest=8 if self.device.type == "cpu" else int(lengths.max()))
        row = 0
        for block in parts:
            events = torch.from_numpy(tokens[block.tokens])
            padded = block.pad(events).to(self.device)  # the start token is read by nobody: padding
            read = self.transformer.encode(padded, padded != _START, dropout, beside(block))
            yield slice(row, row + block.count), read
            row += block.count

    def _beside_codes(self, batch: Batch, contents: Tensor | None) -> Callable[[Block], Tensor | None]:
        """For a block of the batch what the dense head adds to its tokens, float [count, length, D]."""
        dense = self.dense
        if dense is None:
            return lambda _: None
        items = dense.items() if contents is None else contents
        levels = np.ones(self.codes.levels, dtype=np.int64)
        whose = [self._after_user(np.outer(1 + x, levels), batch, 0) for x in (batch.items, batch.from_end)]

        def of(block: Block) -> Tensor:
            read, places = (block.pad(torch.from_numpy(x[block.tokens])).to(self.device) for x in whose)
            return dense.beside_codes(items, read, places)

        return of

    def path_logits(self, memory: Memory, items: Ints, dropout: Dropout = OFF) -> tuple[Tensor, Tensor]:
        """Logits float [B, L, V] of each code of the items after the right codes before it, and the codes' tokens."""
        paths = torch.from_numpy(self.paths[items]).to(self.device)
        written = torch.cat([torch.full_like(paths[:, :1], _START), paths[:, :-1]], dim=1)
        return self.transformer.decode(written, memory, dropout), paths

    @torch.no_grad()
    def path_log_probabilities(self, user: int, items: Ints) -> Tensor:
        """Float32 [n, L] for n items: log-probability of each of their codes, given those before it."""
        users = np.full(len(items), user, dtype=np.int64)
        ((_, memory),) = self.encode(self.histories.last(users, self.reading.max_items))
        logits, paths = self.path_logits(memory, items)
        return logits.log_softmax(-1).gather(2, paths[:, :, None])[:, :, 0].cpu()

    @torch.no_grad()
    def generate(self, users: Ints, k: int, seen: csr_array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """See :class:`recsys.retriever.GeneratingRetriever`."""
        users = np.asarray(users, dtype=np.int64)
        items, scores = np.full((len(users), k), -1, np.int32), np.full((len(users), k), -np.inf, np.float32)
        order = np.argsort(self.histories.lengths[users], kind="stable")
        contents = None if self.dense is None else self.dense.items()
        for some in np.array_split(order, range(self._at_once(k), len(order), self._at_once(k))):
            batch = self.histories.last(users[some], self.reading.max_items)
            for rows, memory in self.encode(batch, contents=contents) if some.size else ():
                masked = seen_keys(seen, batch.users[rows], self.device)
                found, values = self._search(memory, self._beam_for(k), masked)
                if self.dense is not None and contents is not None:
                    found, values = self.dense.rank(memory.last, contents, found, values, masked)
                best_items, best_values = _in_order(found.cpu().numpy(), values.cpu().numpy())
                width = min(k, best_items.shape[1])
                items[some[rows], :width], scores[some[rows], :width] = best_items[:, :width], best_values[:, :width]
        return items, scores

    def _search(self, memory: Memory, beam: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Items int64 [B, W] best first and their log-probabilities; W = 0 for a beam of none."""
        users = len(memory.last)
        if beam == 0:
            nothing = torch.empty(users, 0, device=self.device)
            return nothing.long(), nothing
        return beam_search(_Codes(self, memory), self._trie_here(), users, beam, seen)

    def _beam_for(self, k: int) -> int:
        """Prefixes that a search for k items keeps; none where the dense head ranks all items."""
        if self.dense is None:
            return max(k, self.beam)
        candidates = self.dense.settings.candidates
        return 0 if candidates is None else max(k, self.beam, candidates)

    def scores(self, users: Ints) -> Tensor:
        """Float32 [len(users), num_items]: every item's score, by a search that drops no prefix.

        The log-probability or, with a dense head, what :meth:`DenseHead.rank` makes of it. It decodes every prefix of
        the catalogue for every user, so it is for small catalogues and for tests.
        """
        shape = (self.num_users, self.num_items)
        nothing = csr_array((np.empty(0, np.float32), np.empty((2, 0), np.int64)), shape=shape)
        items, values = self.generate(users, self.num_items, nothing)
        whole = torch.empty(len(items), self.num_items)
        return whole.scatter_(1, torch.from_numpy(items).long(), torch.from_numpy(values))

    def _trie_here(self) -> CodeTrie:
        if self._trie.items.device != self.device:
            self._trie = self._trie.to(self.device)
        return self._trie

    def _at_once(self, k: int) -> int:
        """Users of a search."""
        widest = max(len(self.transformer.embedding), self.transformer.shape.inner)
        ranked = 0 if self.dense is None else len(self.dense.ranked_for_all())
        return max(1, _NUMBERS_AT_ONCE // max(max(k, self.beam, self._beam_for(k)) * widest, ranked))


class _Codes:
    """The :class:`recsys.beam_search.Decoder` of a model."""

    def __init__(self, model: Tiger, memory: Memory) -> None:
        self._starts = model._starts
        self._decoding = Decoding(model.transformer, memory, model.codes.levels)
        self._level = 0

    def step(self, codes: Tensor | None, parents: Tensor) -> Tensor:
        """See :class:`recsys.beam_search.Decoder`."""
        tokens = torch.full_like(parents, _START) if codes is None else codes + int(self._starts[self._level - 1])
        logits = self._decoding.write(tokens, parents)
        first, last = self._starts[self._level], self._starts[self._level + 1]
        self._level += 1
        return logits[:, first:last] - logits.logsumexp(1, keepdim=True)


def _in_order(
    items: npt.NDArray[np.int64], values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Best first, equal scores in the order of the items."""
    places = np.lexsort((items, -values), axis=1)
    return np.take_along_axis(items, places, 1), np.take_along_axis(values, places, 1)
