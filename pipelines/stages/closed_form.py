"""Models without epochs: fit in one go, or at every point of a grid and again at the best one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from scipy.sparse import csr_array

from pipelines.config import Train
from pipelines.config_models import Bspm, ChebyCf, Ease, GfCf, Ials, ItemKnn, Slim
from recsys.checkpoint import Model
from recsys.evaluator import quick_metrics
from recsys.models import bspm, cheby_cf, ease, gf_cf, ials, item_knn, slim

Matrices = tuple[csr_array, csr_array, csr_array]
ClosedFormModel = Ials | ItemKnn | Ease | Slim | GfCf | ChebyCf | Bspm


def fit(config: ClosedFormModel, matrix: csr_array, seed: int) -> Model:
    """The model that ``config`` describes, of ``matrix`` [users, items]; a grid is not looked at.

    ``seed`` is of the start of iALS; the others always start alike.
    """
    parameters = config.model_dump(exclude={"name", "grid"})
    model: Model
    match config:
        case Ials():
            model = ials.Ials.fit(matrix, ials.IalsSettings(**parameters), seed=seed)
        case ItemKnn():
            model = item_knn.ItemKnn.fit(matrix, **parameters)
        case Ease():
            model = ease.Ease.fit(matrix, **parameters)
        case Slim():
            model = slim.Slim.fit(matrix, **parameters)
        case GfCf():
            model = gf_cf.fit_gf_cf(matrix, **parameters)
        case ChebyCf():
            model = cheby_cf.fit_cheby_cf(matrix, **parameters)
        case Bspm():
            model = bspm.fit_bspm(matrix, **parameters)
    return model


def train(
    config: ClosedFormModel, settings: Train, matrices: Matrices, seed: int, on_point: Callable[[int, int], None]
) -> tuple[Model, dict[str, csr_array], dict[str, Any] | None]:
    """Fit ``config``, after a search of its grid.

    Each point is fitted on train and scored on what selects by ``settings.selection``; the first of the best is
    fitted again on what the final model may see.

    Args:
        config: parameters, and the values to try.
        settings: of training.
        matrices: train, what selects (valid, or test in parity runs), and what the final model is fitted on.
        seed: of :func:`fit`.
        on_point: called with the points of the grid that were tried, and all of them; first with none.

    Returns:
        The model; by phase the matrix that it was fitted on, for the leak audit; what the search found.

    Raises:
        ValueError: There is a grid and nothing to select on.
    """
    train_matrix, selects, final = matrices
    if not config.grid:
        return fit(config, final, seed), {"fit": final}, None
    if selects.nnz == 0:
        raise ValueError(
            f"the grid of model {config.name} needs interactions in {settings.selected_on} to choose by, got none; give"
            " the split a validation share, or remove model.grid"
        )
    tried: list[dict[str, Any]] = []
    points = config.points()
    for point in points:
        on_point(len(tried), len(points))
        started = time.perf_counter()
        value = quick_metrics(fit(point, train_matrix, seed), selects, train_matrix, [settings.selection])
        parameters = {name: getattr(point, name) for name in config.grid}
        tried.append({"parameters": parameters, **value, "seconds": time.perf_counter() - started})
    on_point(len(tried), len(points))
    values = [found[settings.selection] for found in tried]
    best = values.index(max(values))
    chosen = {"metric": settings.selection, "on": settings.selected_on, **tried[best], "tried": tried}
    phases = {"select": train_matrix} | ({"refit": final} if settings.refits else {})
    return fit(points[best], final, seed), phases, chosen
