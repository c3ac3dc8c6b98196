import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, Table, build_table
from embeddings.tables.spec import OptimizerName

ROWS, DIM = 60, 20


def new_table(spec: OptimizerSpec, dim: int = DIM) -> Table:
    id_map = IdMap(np.arange(ROWS - 1)[:, None], ROWS, ROWS - 1, "full")
    return build_table(id_map, dim, optimizer=spec, init_std=0.1, generator=np.random.Generator(np.random.Philox(1)))


def batches(count: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, 30, 40)) for _ in range(count)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adam_is_torchs_dense_adam_over_50_steps(weight_decay: float) -> None:
    table = new_table(OptimizerSpec("adam", lr=0.01, weight_decay=weight_decay))
    dense = torch.nn.Parameter(table.weight().clone())
    theirs = torch.optim.Adam([dense], lr=0.01, weight_decay=weight_decay)
    for ids in batches(50):
        (table(ids) ** 2).sum().backward()
        table.step()
        theirs.zero_grad()
        (dense[ids] ** 2).sum().backward()
        theirs.step()
    torch.testing.assert_close(table.weight(), dense.detach(), rtol=1e-4, atol=1e-5)
    assert table.bytes().optimizer == 2 * ROWS * DIM * 4


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("dim", [DIM, 17, 64])
def test_lazy_adam_is_adams_formula_for_the_rows_of_the_batch(dim: int, weight_decay: float) -> None:
    spec = OptimizerSpec("lazy_adam", lr=0.01, weight_decay=weight_decay)
    table = new_table(spec, dim=dim)
    weight = table.weight().double().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, ids in enumerate(batches(50), start=1):
        (table(ids) ** 2).sum().backward()
        table.step()
        rows = ids.unique()
        times = torch.bincount(ids, minlength=len(weight))[rows, None]
        gradient = (2 * times + weight_decay) * weight[rows]
        mean[rows] = 0.9 * mean[rows] + 0.1 * gradient
        square[rows] = 0.999 * square[rows] + 0.001 * gradient**2
        root = (square[rows] / (1 - 0.999**step)).sqrt() + 1e-8
        weight[rows] -= 0.01 * mean[rows] / (1 - 0.9**step) / root
    torch.testing.assert_close(table.weight().double(), weight, rtol=1e-4, atol=1e-5)
    assert table.bytes().optimizer == 2 * table.num_rows * dim * 4


def test_lazy_adam_is_torchs_sparse_adam() -> None:
    table = new_table(OptimizerSpec("lazy_adam", lr=0.01))
    theirs = torch.nn.Embedding.from_pretrained(table.weight().clone(), freeze=False, sparse=True)
    optimizer = torch.optim.SparseAdam(theirs.parameters(), lr=0.01)
    for ids in batches(50):
        (table(ids) ** 2).sum().backward()
        table.step()
        optimizer.zero_grad()
        (theirs(ids) ** 2).sum().backward()
        optimizer.step()
    torch.testing.assert_close(table.weight(), theirs.weight.detach(), rtol=1e-3, atol=1e-4)


def test_adam_moves_rows_that_the_batch_does_not_touch() -> None:
    table = new_table(OptimizerSpec("adam"))
    table(torch.tensor([3])).sum().backward()
    table.step()
    before = table.weight().clone()
    table(torch.tensor([5])).sum().backward()
    table.step()
    assert (table.weight()[3] != before[3]).all()
    assert torch.equal(table.weight()[4], before[4])


@pytest.mark.parametrize("name", ["adam", "lazy_adam"])
def test_adam_resumes_bit_for_bit(name: OptimizerName) -> None:
    def train(table: Table, part: list[torch.Tensor]) -> None:
        for ids in part:
            (table(ids) ** 2).sum().backward()
            table.step()

    straight, first, second = (new_table(OptimizerSpec(name)) for _ in range(3))
    train(straight, batches(20))
    train(first, batches(20)[:10])
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    train(second, batches(20)[10:])
    assert set(straight.state_dict()) == {"embedding", "exp_avg", "exp_avg_sq", "steps"}
    for key, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_weight_decay_is_l2_on_the_touched_rows(name: str) -> None:
    decayed = new_table(OptimizerSpec(name, lr=0.1, weight_decay=0.5))  # type: ignore[arg-type]
    plain = new_table(OptimizerSpec(name, lr=0.1))  # type: ignore[arg-type]
    ids = torch.tensor([4, 9])
    start = plain.weight().clone()
    decayed(ids).sum().backward()
    plain(ids).backward(1 + 0.5 * start[ids])
    decayed.step()
    plain.step()
    torch.testing.assert_close(decayed.weight(), plain.weight())
    assert torch.equal(decayed.weight()[10], start[10])


def test_two_backward_passes_are_one_batch() -> None:
    once, twice = (new_table(OptimizerSpec("rowwise_adagrad", lr=0.1)) for _ in range(2))
    first, second = torch.tensor([1, 2, 2]), torch.tensor([2, 7])
    once(torch.cat([first, second])).sum().backward()
    twice(first).sum().backward()
    twice(second, torch.tensor([0, 0, 2])).sum().backward()
    assert torch.equal(once.weight(), twice.weight())
    once.step()
    twice.step()
    assert torch.equal(once.weight(), twice.weight())
    before = once.weight().clone()
    once.step()
    assert torch.equal(once.weight(), before)
