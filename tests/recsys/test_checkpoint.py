"""Files of trainings and models: refused when foreign, whole after kill -9, the same bits after a resume."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from embeddings.id_map import IdMap
from recsys.checkpoint import _table, load_model, save_model
from recsys.models.popularity import Popularity
from recsys.training_state import CheckpointError, fingerprint, read_state, write_state

FACTS = {"fingerprint": "f" * 64, "progress": {"epoch": 3}}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "training.safetensors"
    write_state(path, {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(4)}, FACTS)
    return path


def test_a_state_comes_back(state: Path) -> None:
    tensors, facts = read_state(state, "f" * 64)
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3)) and tensors["n"] == 4
    assert facts == FACTS
    assert [p.name for p in state.parent.iterdir()] == ["training.safetensors"]


def test_equal_states_are_equal_bytes(state: Path) -> None:
    written = {state.read_bytes()}
    for _ in range(20):
        tensors = {"n": torch.tensor(4), "a": torch.arange(6.0).reshape(2, 3)}
        write_state(state, tensors, dict(reversed(FACTS.items())))
        written.add(state.read_bytes())
    assert len(written) == 1


def test_another_run_is_refused(state: Path) -> None:
    with pytest.raises(CheckpointError, match=r"belongs to another configuration.*fingerprint ffff.*this run has 0000"):
        read_state(state, "0" * 64)


@pytest.mark.parametrize("keep", [0, 5, 60, 200, -1])
def test_a_truncated_state_is_refused(state: Path, keep: int) -> None:
    state.write_bytes(state.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"training.safetensors is .*delete it to train from the start"):
        read_state(state, "f" * 64)


def test_a_pickle_is_never_loaded(state: Path) -> None:
    for write in (lambda: torch.save({"a": torch.ones(2)}, state), lambda: state.write_bytes(b"\x80\x04K\x01.")):
        write()
        with pytest.raises(CheckpointError, match=r"a pickle or torch\.save archive, which is never loaded"):
            read_state(state, "f" * 64)


def test_foreign_safetensors_and_versions_are_refused(state: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, state)
    with pytest.raises(CheckpointError, match="is safetensors but not a training state of this program"):
        read_state(state, "f" * 64)
    old = {"format": "recsys-training-state", "version": "1", "facts": "{}"}
    for metadata, message in (
        (old, "version 1, this program reads 2"),
        ({"recsys-training-state": "[]"}, "delete it to"),
    ):
        safetensors.torch.save_file({"a": torch.ones(2)}, state, metadata)
        with pytest.raises(CheckpointError, match=message):
            read_state(state, "f" * 64)
    metadata = {"recsys-training-state": json.dumps({"version": 99, "facts": {}})}
    safetensors.torch.save_file({"a": torch.ones(2)}, state, metadata)
    with pytest.raises(CheckpointError, match="has training state version 99, this program reads 2"):
        read_state(state, "f" * 64)


def test_the_fingerprint_sees_values_types_and_shapes() -> None:
    parts: list[object] = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.int32),
        np.zeros(4, np.float32),
        np.zeros(4, np.float64),
        [0.0] * 4,
        {"a": 1},
        torch.tensor(0.0),
    ]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def saved(directory: Path) -> Path:
    save_model(Popularity(3, torch.tensor([1.0, 2.0])), directory)
    return directory


def test_saving_replaces_a_model_but_nothing_else(tmp_path: Path) -> None:
    saved(saved(tmp_path / "model"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="precious exists and is not a saved model; choose an empty or new"):
        saved(tmp_path / "precious")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "precious"]


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    facts = json.loads((model / "model.json").read_text())
    for change, message in (
        ({"format": "x"}, "does not describe a model of this program"),
        ({"version": 9}, "has version 9, this program reads 1"),
        ({"model": "magic"}, "names the unknown model 'magic'"),
        ({"model": "mf"}, r"model.safetensors is damaged, or files beside it are missing"),
    ):
        (model / "model.json").write_text(json.dumps(facts | change))
        with pytest.raises(CheckpointError, match=message):
            load_model(model)
    (model / "model.json").write_text(json.dumps(facts))
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load_model(model)
    users = model / "user_map.safetensors"
    IdMap.identity(60).save(users)
    with pytest.raises(CheckpointError, match=r"users beside .*user_map.safetensors do not fit it: the map has 61"):
        _table(users, {"users": torch.zeros(2, 1)}, "users")
    users.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"user_map.safetensors is not a whole safetensors file"):
        _table(users, {"users": torch.zeros(2, 1)}, "users")
    with pytest.raises(CheckpointError, match=r"nowhere/model.json cannot be read.*must be a saved model"):
        load_model(tmp_path / "nowhere")


def train_in_a_child(name: str, directory: Path | None, out: Path, seconds: float) -> None:
    """Train a variant of the trainer's tests; SIGKILL strikes after ``seconds``."""
    from test_trainer import VARIANTS, dataclasses, fit, make_model, planted, timeless

    optimizer, similarity, settings = VARIANTS[name]
    model = make_model(optimizer, similarity=similarity)
    warm = dataclasses.replace(settings, epochs=1)  # loads the kernels, so that the kill strikes the training itself
    fit(make_model(optimizer, similarity=similarity), *planted(), warm, seed=0)
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    settings = dataclasses.replace(settings, checkpoint_minutes=1e-9)
    start = time.perf_counter()
    result = fit(model, *planted(), settings, seed=0, checkpoint_dir=directory)
    out.with_suffix(".seconds").write_text(str(time.perf_counter() - start))
    facts = {"history": json.dumps(timeless(result)), "best": str(result.best_epoch)}
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out, facts)
    os._exit(0)


@pytest.mark.parametrize("growth", [1.0, pytest.param(0.2, marks=pytest.mark.quality)], ids=["few kills", "many kills"])
@pytest.mark.parametrize("name", ["adam", "keep best"])
def test_kill_9_at_random_moments_changes_no_bit(name: str, growth: float, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recsys.trainer", "torch.fx.experimental.symbolic_shapes", "pytest"])

    def run(directory: Path | None, out: Path, seconds: float) -> int | None:
        child = context.Process(target=train_in_a_child, args=(name, directory, out, seconds))
        child.start()
        child.join()
        return child.exitcode

    assert run(None, tmp_path / "whole", 600.0) == 0
    whole = float((tmp_path / "whole.seconds").read_text())
    rng = np.random.default_rng(7)
    kills, seconds = 0, 0.05 * whole
    while run(tmp_path / "state", tmp_path / "resumed", seconds) == -signal.SIGKILL:
        kills += 1
        seconds = whole * float(rng.uniform(0.05, 0.4)) * (1 + growth * kills)  # ever later: it ends
    assert kills >= 2
    with (
        safetensors.safe_open(tmp_path / "whole", "pt") as one,
        safetensors.safe_open(tmp_path / "resumed", "pt") as two,
    ):
        assert one.metadata() == two.metadata()
        assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())  # noqa: SIM118
