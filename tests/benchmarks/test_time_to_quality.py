"""The ladders of time to quality, without the peer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from benchmarks import time_to_quality
from benchmarks.time_to_quality import Measured, Setting, _best, _Trials, fit_ours, hold_out, ladder, panel

QUICK = [
    Setting("gf_cf", 4, 0.5),
    Setting("cheby_cf", 4, 0.2),
    Setting("mf", 60, 0.2),
    Setting("spectral_mf", 60, 0.2),
    Setting("blend", 60, 0.4),
    Setting("ials", 8, 0.1, 0.01),
]


def planted() -> csr_array:
    likes = np.add.outer(np.arange(60), np.arange(40)) % 4 == 0
    return csr_array(likes.astype(np.float32))


def test_every_model_of_ours_finds_the_planted_groups_and_a_second_run_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_to_quality, "SMOKE_RESULTS", tmp_path)
    kept, held = hold_out(planted())
    assert kept.nnz + held.nnz == planted().nnz and kept.multiply(held).nnz == 0
    found = _Trials(kept, held, tmp_path, 1.0).climb(QUICK)
    assert all(measured.recall > 0.9 for measured in found.values())
    again = _Trials(kept, held, tmp_path, 1.0)
    again.train = None  # type: ignore[assignment]
    assert again.climb(QUICK) == found


def test_the_best_is_chosen_among_those_that_end_in_time_on_both_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    als = Setting("als", 5, 10.0, 0.1)
    found = {QUICK[0]: Measured(5.0, 0.1), QUICK[1]: Measured(20.0, 0.3), QUICK[2]: Measured(9.0, 0.2)}
    found[als] = Measured(1.0, 0.2)
    last = {QUICK[0]: Measured(6.0, 0.1), QUICK[1]: Measured(22.0, 0.4), QUICK[2]: Measured(11.0, 0.3)}
    last[als] = Measured(1.0, 0.1)
    monkeypatch.setattr(time_to_quality, "SMOKE_RESULTS", tmp_path)
    final = _Trials(planted(), planted(), tmp_path, 1.0)
    final.known = {setting.name: dataclasses.asdict(measured) for setting, measured in last.items()}
    assert _best(found, final, 10.0, peer=False) == (QUICK[0], last[QUICK[0]])  # the better one takes 11 s at last
    assert _best(found, final, 30.0, peer=False) == (QUICK[1], last[QUICK[1]])
    assert _best(found, final, 30.0, peer=True) == (als, last[als])
    assert _best(found, final, 0.5, peer=True) is None
    drawn = panel(found)
    assert "als" in drawn.svg and len(drawn.rows) == 4


def test_settings_have_names_of_their_own_and_the_peer_is_not_fitted_here() -> None:
    names = [setting.name for setting in ladder()]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match=r"als is implicit's; ours are gf_cf, .* blend and ials"):
        fit_ours(Setting("als", 1, 10.0, 0.1), planted(), 1)
