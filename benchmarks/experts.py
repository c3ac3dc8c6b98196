"""A training step of a mixture of 16 experts, 2 of them an example, against the same step with all experts computed."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Row, finish, paired, set_threads
from recsys.rankers.experts import Experts
from recsys.rankers.gates.top_k import TopKGate
from recsys.rankers.ranker import Tower

EXPERTS, K, WIDTH, HIDDEN, BATCH, STEPS = 16, 2, 256, 256, 2048, 20


def run(scale: float = 1.0) -> int:
    """Time forward and backward of one gate and of two; ``scale`` is the share of the steps."""
    set_threads()
    steps = max(2, int(STEPS * scale))
    return finish("experts", [_row(tasks, steps) for tasks in (1, 2)], scale=scale)


def _row(tasks: int, steps: int) -> Row:
    draws = torch.Generator().manual_seed(0)
    experts = Experts(WIDTH, EXPERTS, Tower((HIDDEN,)), torch.Generator())
    experts.draw(draws)
    gates = [TopKGate(WIDTH, EXPERTS, K) for _ in range(tasks)]
    for gate in gates:
        gate.draw(draws)
    inputs = torch.randn(BATCH, WIDTH, generator=draws)
    keys = torch.zeros(BATCH, dtype=torch.int64)
    losses: dict[str, Tensor] = {}

    def sparse(weights: list[Tensor]) -> list[Tensor]:
        return experts(inputs, weights)

    def dense(weights: list[Tensor]) -> list[Tensor]:
        """One batched product over all experts, then the weighted sum: how the mixture is written without routing."""
        hidden = torch.baddbmm(experts.biases[0][:, None], inputs.expand(EXPERTS, -1, -1), experts.weights[0]).relu()
        return [torch.einsum("be,ebh->bh", part, hidden) for part in weights]

    def job(name: str) -> None:
        for _ in range(steps):
            mixed = (sparse if name == "sparse" else dense)([gate(inputs, keys).weights for gate in gates])
            loss = torch.stack([part.square().mean() for part in mixed]).sum()
            loss.backward()
            losses[name] = loss.detach()
            experts.zero_grad()

    pairs = paired(lambda: job("sparse"), lambda: job("dense"), repeats=7 if steps == STEPS else 2)
    met = torch.stack([gate(inputs, keys).weights for gate in gates]).ne(0).any(dim=0).sum(dim=1)
    return Row.rate(
        f"{tasks} {'gate' if tasks == 1 else 'gates'}, {EXPERTS} experts of {WIDTH} x {HIDDEN}, k = {K}, batch {BATCH}",
        f"all experts, torch {torch.__version__}",
        pairs,
        work=float(steps * BATCH),
        unit="examples/s",
        experts_met=float(met.double().mean()),
        difference=abs(float(losses["sparse"] - losses["dense"])),
    )


if __name__ == "__main__":
    raise SystemExit(run())
