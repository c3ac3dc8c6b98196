"""The ``recsys`` command. Every import of weight is inside a command, so that ``recsys --help`` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

if "OMP_WAIT_POLICY" not in os.environ:  # before torch loads its threads: those that wait would keep others from a core
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def _examples(*lines: str) -> str:
    """Help text that keeps its line breaks."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


app = typer.Typer(
    name="recsys",
    help="Train recommenders with compressed embedding tables, and measure what the compression cost.",
    epilog="Start with: recsys run quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

cache_app = typer.Typer(help="Look at the stage cache, and empty it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")

Config = Annotated[str, typer.Argument(help="YAML file, or the name of a packaged experiment (see: recsys ls)")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings on top of the file, as train.epochs=3 (values are YAML)"),
]
Run = Annotated[Path, typer.Argument(help="run directory, or its name under runs/")]
Variant = Annotated[str | None, typer.Option(help="variant of the run; without it the best one on validation")]


@app.command(
    epilog=_examples(
        "recsys run quickstart",
        "recsys run configs/experiments/gowalla_graphhash.yaml train.epochs=5 'seeds=[0, 1]'",
        "recsys run quickstart 'variants=[popularity, mf-full]' variants.mf-full.model.dim=32",
    )
)
def run(
    config: Config,
    overrides: Overrides = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but the result")] = False,
) -> None:
    """Run an experiment: ingest, split, graph, compress, train, evaluate, report.

    A rerun does only what changed; a killed run goes on where it was. The last line of stdout is the run directory.
    """
    from pipelines.config_loader import load_experiment
    from pipelines.config_multitask import MultiTaskExperiment
    from pipelines.config_ranking import RankingExperiment

    experiment = load_experiment(config, overrides or [])
    if isinstance(experiment, RankingExperiment):
        from pipelines.ranking.runner import run_ranking

        typer.echo(run_ranking(experiment, command=_command(), quiet=quiet))
        return
    if isinstance(experiment, MultiTaskExperiment):
        from pipelines.multitask.runner import run_multitask

        typer.echo(run_multitask(experiment, command=_command(), quiet=quiet))
        return
    from pipelines.runner import run_experiment  # after the check, for it takes seconds

    typer.echo(run_experiment(experiment, command=_command(), quiet=quiet))


@app.command(
    epilog=_examples(
        "recsys sweep sweep_frappe --trials 20",
        "recsys sweep my.yaml --trials 50 --timeout 120 'variants=[mf-full]'",
        "recsys run runs/my-sweep-1a2b3c4d/best.yaml   (what it found, on test)",
    )
)
def sweep(
    config: Config,
    overrides: Overrides = None,
    *,
    trials: Annotated[
        int, typer.Option(min=1, help="trials of each variant in all, over all calls and processes")
    ] = 20,
    timeout: Annotated[float | None, typer.Option(min=0.0, help="minutes after which no trial is begun")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but the result")] = False,
) -> None:
    """Search the settings under `search` in an experiment, by its validation metric.

    Processes started with one command share its trials; a killed one loses none. Every trial is a child run in MLflow.
    The last line of stdout is the experiment with the best settings; `recsys run` takes it and reads the test split.
    """
    from pipelines.config_loader import load_experiment
    from pipelines.sweep.sweep import run_sweep

    experiment = load_experiment(config, overrides or [])
    typer.echo(run_sweep(experiment, trials=trials, minutes=timeout, command=_command(), quiet=quiet))


@app.command(epilog=_examples("recsys validate quickstart", "recsys validate my.yaml dataset.source=events.csv"))
def validate(config: Config, overrides: Overrides = None) -> None:
    """Check an experiment without running it: every mistake at once, the data, and the memory that it will need."""
    from pipelines.config_loader import load_experiment
    from pipelines.config_multitask import MultiTaskExperiment
    from pipelines.config_ranking import RankingExperiment

    experiment = load_experiment(config, overrides or [])
    if isinstance(experiment, RankingExperiment):
        from pipelines.ranking.check import describe_ranking

        typer.echo(describe_ranking(experiment))
        return
    if isinstance(experiment, MultiTaskExperiment):
        from pipelines.multitask.check import describe_multitask

        typer.echo(describe_multitask(experiment))
        return
    from pipelines.validate import describe

    typer.echo(describe(experiment))


@app.command("ls", epilog=_examples("recsys ls", "recsys ls compressors"))
def list_names(
    kind: Annotated[str | None, typer.Argument(help="experiments, datasets, models, compressors, ...")] = None,
) -> None:
    """List what a configuration can name: experiments, datasets, models, compressors, losses, metrics."""
    from pipelines.listing import listing

    typer.echo(listing(kind))


@app.command("cp", epilog=_examples("recsys cp quickstart", "recsys cp gowalla_graphhash mine.yaml"))
def copy(
    config: Config,
    to: Annotated[Path, typer.Argument(help="file or directory to write")] = Path(),
) -> None:
    """Copy a packaged experiment, to be changed."""
    from pipelines.listing import copy_config

    typer.echo(copy_config(config, to))


@app.command(
    epilog=_examples(
        "recsys compare runs/quickstart-1a2b3c4d runs/quickstart-5e6f7a8b --metric ndcg@20",
        "recsys compare runs/ctr_frappe-1a2b3c4d runs/sweep_frappe-best-5e6f7a8b --metric log_loss",
        "recsys compare runs/closed-1a2b3c4d runs/graph-5e6f7a8b --variant ease --variant gf_cf",
    )
)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="run directories on the same data")],
    metric: Annotated[
        str | None, typer.Option(help="per-user metric, else what selected; of rankers auc, gauc, pr_auc, log_loss")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write the table there, as .html or .md")] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="only this variant: once for all runs, or once for each in their order")
    ] = None,
) -> None:
    """Compare the variants of several runs on their common users or events: paired tests, Holm-corrected."""
    from pipelines.run_directory import find_run
    from pipelines.run_files import RunFiles

    found = [find_run(run) for run in runs]
    if any(RunFiles(run).ranking_config() is not None for run in found):
        from pipelines.ranking.compare import compare_ranking

        typer.echo(compare_ranking(found, metric or "auc", out, variant or ()))
        return
    from pipelines.compare import compare_runs

    typer.echo(compare_runs(found, metric, out, variant or ()))


@app.command(epilog=_examples("recsys report runs/quickstart-1a2b3c4d"))
def report(run: Run) -> None:
    """Build report.html of a run anew and print its path."""
    from pipelines.report import build_report
    from pipelines.run_directory import find_run, open_dataset
    from pipelines.run_files import RunFiles

    directory = find_run(run)
    config = RunFiles(directory).ranking_config()
    if config is not None:
        from pipelines.multitask.report import build_multitask_report
        from pipelines.ranking.report import build_ranking_report

        build = build_ranking_report if config.task == "ctr" else build_multitask_report
        typer.echo(build(directory))
        return
    typer.echo(build_report(directory, open_dataset(directory)))


@app.command(
    epilog=_examples(
        "recsys recommend runs/quickstart-1a2b3c4d --user 17",
        "recsys recommend runs/quickstart-1a2b3c4d --user 17 --variant mf-graphhash --k 20 --json",
        "recsys recommend runs/kgat_ml100k-1a2b3c4d --user 17 --variant kgat --explain",
    )
)
def recommend(
    run: Run,
    user: Annotated[str, typer.Option(help="raw id of a user, as in the data")],
    *,
    variant: Variant = None,
    k: Annotated[int, typer.Option(min=1, help="how many items")] = 10,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="with kgat, tiger or rpg: the facts or codes that lead to each item")
    ] = False,
) -> None:
    """Show a user's history and what a variant recommends; for an unknown user the most popular items."""
    from pipelines.recommend import recommend as recommend_to

    recommendation = recommend_to(run, user, variant=variant, k=k, explain=explain)
    typer.echo(recommendation.json() if json else recommendation.text())


@app.command(
    epilog=_examples(
        "recsys score runs/ctr_ml1m-1a2b3c4d rows.csv > scored.csv",
        "recsys score runs/ctr_ml1m-1a2b3c4d rows.parquet --variant dcn-graphhash --out scored.parquet",
    )
)
def score(
    run: Run,
    rows: Annotated[Path, typer.Argument(help=".csv, .tsv, .parquet or .jsonl with the columns of the training data")],
    variant: Annotated[str | None, typer.Option(help="variant; without it the best one on validation")] = None,
    out: Annotated[Path | None, typer.Option(help=".csv or .parquet to write; without it CSV on stdout")] = None,
) -> None:
    """Add a ranker's probability and log-odds to rows of its fields; what train never had is unseen, not an error."""
    from pipelines.ranking.scoring import score_file

    typer.echo(score_file(run, rows, variant=variant, out=out))


@app.command(
    epilog=_examples(
        "recsys export runs/quickstart-1a2b3c4d --variant mf-graphhash --out vectors",
        "recsys export runs/quickstart-1a2b3c4d --graph train.graphml --sample-users 200",
        "recsys export runs/quickstart-1a2b3c4d --graph items.graphml --co-occurrence",
    )
)
def export(
    run: Run,
    *,
    out: Annotated[Path | None, typer.Option(help="directory for the vectors; must not exist")] = None,
    variant: Variant = None,
    graph: Annotated[Path | None, typer.Option(help="GraphML file for the training graph; must not exist")] = None,
    sample_users: Annotated[
        int | None, typer.Option(min=1, help="graph of so many users drawn at random, the same each time")
    ] = None,
    co_occurrence: Annotated[
        bool, typer.Option("--co-occurrence", help="graph of items alone, weighted by the users that they share")
    ] = False,
) -> None:
    """Write a variant's user and item vectors (safetensors) with raw ids (Parquet), or the training graph (GraphML)."""
    from pipelines.export import export_graph, export_vectors

    if graph is None and (sample_users is not None or co_occurrence):
        raise ValueError("--sample-users and --co-occurrence are of the graph; name a file for it with --graph")
    if out is None and graph is None:
        raise ValueError("there is nothing to export; name a directory for vectors with --out, or a file with --graph")
    if out is not None:
        typer.echo(export_vectors(run, out, variant=variant))
    if graph is not None:
        typer.echo(export_graph(run, graph, sample_users=sample_users, co_occurrence=co_occurrence))


@app.command(
    epilog=_examples("recsys upload runs/quickstart-1a2b3c4d", "recsys upload RUN --uri http://127.0.0.1:5000")
)
def upload(
    run: Run,
    uri: Annotated[str | None, typer.Option(help="tracking server; without it the one that the run was for")] = None,
) -> None:
    """Send MLflow what it missed of a run because the server was away."""
    from pipelines.run_directory import find_run
    from pipelines.tracking import upload as upload_run

    typer.echo(f"{upload_run(find_run(run), uri)} events uploaded")


@app.command(epilog=_examples("recsys doctor"))
def doctor() -> None:
    """Check the installation: versions, which back ends load and why not, and the command that mends it.

    Exits with 1 if something that is required is broken.
    """
    from pipelines.doctor import examine

    findings = examine()
    typer.echo(findings.text())
    raise typer.Exit(0 if findings.healthy else 1)


@cache_app.command("ls", epilog=_examples("recsys cache ls"))
def cache_list() -> None:
    """Show what each stage keeps: entries, size, and when they were last used."""
    from pipelines.cache_prune import describe_cache
    from pipelines.run_directory import cache_root

    typer.echo(describe_cache(cache_root()))


@cache_app.command(
    "prune", epilog=_examples("recsys cache prune --older-than-days 30", "recsys cache prune --max-gib 10 --dry-run")
)
def cache_prune(
    *,
    older_than_days: Annotated[float | None, typer.Option(min=0, help="remove what was not used for so long")] = None,
    max_gib: Annotated[float | None, typer.Option(min=0, help="remove the least recently used down to this")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
) -> None:
    """Remove old entries of the stage cache. A run that needs one again makes it anew; run directories stay."""
    from pipelines.cache_prune import prune
    from pipelines.run_directory import cache_root

    typer.echo(prune(cache_root(), older_than_days=older_than_days, max_gib=max_gib, dry_run=dry_run))


@app.command(epilog=_examples("recsys bench auc", "recsys bench topk --scale 0.1"))
def bench(
    name: Annotated[str, typer.Argument(help="name of a benchmark, as topk; a wrong one lists all")],
    scale: Annotated[float, typer.Option(min=0.001, help="size of the job; 1 is the official one")] = 1.0,
) -> None:
    """Measure one job against its peer, in a checkout of the repository. The last line of stdout is JSON."""
    from pipelines.bench import run_benchmark

    raise typer.Exit(run_benchmark(name, scale))


def _command() -> str:
    import shlex

    return shlex.join(["recsys", *sys.argv[1:]])


def _mendable(error: Exception) -> bool:
    """Whether the user can mend it: of the errors at run time, only a training that diverged."""
    if not isinstance(error, RuntimeError):
        return True
    from recsys.settings import TrainingDivergedError

    return isinstance(error, TrainingDivergedError)


def main() -> None:
    """Run the command line; an error that the user can mend is one message on stderr and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("RECSYS_DEBUG") or not _mendable(error):
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # typer's answer to Ctrl-C
            sys.stderr.write("\nstopped; the same command goes on from here\n")
        raise


if __name__ == "__main__":
    main()
