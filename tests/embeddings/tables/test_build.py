import sys

import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.sparsity import Sparsity
from embeddings.tables import OptimizerSpec, build_table
from embeddings.tables.table import Table


def build(backend: str, spec: OptimizerSpec, dim: int = 8) -> Table:
    id_map = IdMap(np.arange(3)[:, None], 4, 3, "full")
    generator = np.random.default_rng(0)
    return build_table(id_map, dim, backend=backend, optimizer=spec, init_std=1.0, generator=generator)  # type: ignore[arg-type]


def test_fbgemm_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"FBGEMM has no adam on the CPU; use the torch back end"):
        build("fbgemm", OptimizerSpec("adam"))
    with pytest.raises(ValueError, match=r"ignores weight decay on the CPU, got 0.1; use the torch back end"):
        build("fbgemm", OptimizerSpec("rowwise_adagrad", weight_decay=0.1))
    with pytest.raises(ValueError, match=r"multiple of 4, got 10; use 12 or backend torch"):
        build("fbgemm", OptimizerSpec("sgd"), dim=10)


def test_missing_fbgemm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("fbgemm_gpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)
    with pytest.raises(ModuleNotFoundError, match=r"run `pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0`"):
        build("fbgemm", OptimizerSpec("sgd"))
    assert build("torch", OptimizerSpec("sgd")).weight().shape == (4, 8)


def test_dimension_must_be_positive() -> None:
    with pytest.raises(ValueError, match="dim >= 1, got 0"):
        build("torch", OptimizerSpec("sgd"), dim=0)


def test_rows_need_31_bits() -> None:
    id_map = IdMap(np.arange(3)[:, None], 2**31, 3, "full")
    with pytest.raises(ValueError, match=r"2\^31 - 1 rows, got 2,147,483,648; compress, or shard"):
        build_table(id_map, 1, optimizer=OptimizerSpec(), init_std=1.0, generator=np.random.default_rng(0))


def test_what_has_no_whole_rows_says_so_when_they_are_written() -> None:
    sparse = build_table(
        IdMap.identity(3), 4, optimizer=OptimizerSpec("sgd"), init_std=0.1, generator=np.random.default_rng(0),
        sparsity=Sparsity(0.5),
    )  # fmt: skip
    with pytest.raises(TypeError, match="SparseTable does not store whole rows"):
        sparse.write(torch.zeros(1, 4), torch.tensor([0]))
