from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.catalogue_auc import catalogue_auc
from recsys.models import rpg as module
from recsys.models.rpg import Rpg
from recsys.topk import exact_top_k
from tests.recsys.rpg_fixture import WIDTHS, codes, rpg
from tests.recsys.sequence_fixture import full_table, plain_sasrec, random_sequences

USERS, ITEMS = np.arange(12), 25


def brute_force(model: Rpg, user: int) -> np.ndarray:
    """The log-probability of every item's id by the equations, one user at a time."""
    histories = model.histories
    history = histories.items[histories.offsets[user] : histories.offsets[user + 1]][-model.encoder.max_length :]
    tokens = [part.double() for part in model.tokens.weight()[: sum(WIDTHS)].split(WIDTHS)]
    read = torch.stack(
        [torch.stack([own[c] for own, c in zip(tokens, code, strict=True)]).mean(0)
         for code in model.codes.codes[history]]
    )  # fmt: skip
    hidden = plain_sasrec(model.encoder, read, np.zeros(len(history)))[-1]  # type: ignore[arg-type]
    scores = np.zeros(model.num_items)
    for digit, own in enumerate(tokens):
        inner = model.heads.weights[digit].double() @ hidden + model.heads.biases[digit].double()
        head = hidden + inner * torch.sigmoid(inner)
        logits = torch.nn.functional.cosine_similarity(head[None], own) / model.temperature
        scores += logits.log_softmax(0).detach().numpy()[model.codes.codes[:, digit]]
    return scores


def test_the_score_of_an_item_is_the_log_probability_of_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rpg()
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 5)
    found = model.scores(USERS).numpy()
    for user in range(1, 12):
        np.testing.assert_allclose(found[user], brute_force(model, user), rtol=1e-4, atol=1e-4)


def test_the_digits_of_an_item_add_up_to_its_score() -> None:
    model, items = rpg(), np.array([3, 24, 0])
    digits = model.digit_log_probabilities(4, items)
    assert digits.shape == (3, len(WIDTHS)) and not digits.requires_grad
    tokens = model.log_probabilities(np.array([4]))[0].split(WIDTHS)
    for row, code in zip(digits, model.codes.codes[items], strict=True):
        assert row.tolist() == [own[int(c)].item() for own, c in zip(tokens, code, strict=True)]
    torch.testing.assert_close(digits.sum(1), model.scores(np.array([4]))[0, items])


def test_the_ranking_is_exact_and_masks_what_was_seen() -> None:
    model = rpg()
    seen = model.histories.matrix(ITEMS)
    scores = model.scores(USERS).numpy()
    for masked, matrix in ((scores, None), (np.where(seen.toarray() > 0, -np.inf, scores), seen)):
        top = exact_top_k(model, USERS, 6, matrix)
        for user, row in enumerate(masked):
            best = np.argsort(-row, kind="stable")[:6]
            assert top.items[user].tolist() == [item if row[item] > -np.inf else -1 for item in best]


def test_items_of_one_id_score_alike_and_tie_by_their_index() -> None:
    model = rpg()
    scores = model.scores(USERS)
    assert torch.equal(scores[:, -1], scores[:, -2])
    for row in exact_top_k(model, USERS, ITEMS, None).items.tolist():
        assert row.index(ITEMS - 1) == row.index(ITEMS - 2) + 1


def test_a_user_without_a_history_scores_all_items_alike() -> None:
    scores = rpg().scores(np.array([0, 1]))
    assert scores[0].unique().tolist() == pytest.approx([-np.log(WIDTHS).sum()])
    assert len(scores[1].unique()) > 10


def test_auc_is_that_of_the_scores() -> None:
    model = rpg()
    relevant, seen = random_sequences(12, ITEMS, 3).matrix(ITEMS), model.histories.matrix(ITEMS)
    relevant = relevant - relevant.multiply(seen)
    relevant.eliminate_zeros()
    found = catalogue_auc(model, USERS, relevant.sorted_indices(), seen)
    scores = model.scores(USERS).numpy()
    for user in USERS:
        good = relevant[[user]].indices
        bad = np.setdiff1d(np.arange(ITEMS), np.concatenate([good, seen[[user]].indices]))
        own, others = scores[user, good][:, None], scores[user, bad]
        wins = (own > others) + 0.5 * (own == others)
        assert np.isnan(found[user]) if wins.size == 0 else found[user] == pytest.approx(wins.mean())


def test_a_table_of_other_tokens_is_refused() -> None:
    model = rpg()
    with pytest.raises(ValueError, match="tokens must be a table of 12 ids, the codes of all digits, got 11"):
        Rpg(codes(5), full_table(11, 8), model.encoder, model.histories, temperature=0.1)
