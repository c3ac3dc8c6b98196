"""Which files a dataset is made of, and in which format."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pipelines import config
from pipelines.errors import DataError, did_you_mean

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".inter": "recbole",
    ".txt": "lightgcn",
}
PACKED = (".gz", ".zip", ".zst", ".bz2", ".xz", ".7z", ".tar", ".tgz")
SAMPLES = Path(__file__).resolve().parent.parent / "sample"
PROJECT = Path(__file__).resolve().parent.parent.parent
GUESSES = ("interactions.*", "ratings.*", "events.*", "*.inter", "train.txt")


@dataclasses.dataclass(frozen=True)
class Source:
    """Interaction files in reading order, their format, and the directory that feature files are relative to.

    That is the source directory, or the folder of a source file or glob, the nearest one without a wildcard.
    """

    files: tuple[Path, ...]
    format: str
    root: Path

    def beside(self, settings: config.Dataset) -> list[Path]:
        """The files that are there beside the interactions, of users, items and a knowledge graph."""
        found = named_files(settings, self.root)
        if self.format == "recbole":
            found += [*self.root.glob("*.user"), *self.root.glob("*.item")]
        return sorted(path for path in set(found) if path.is_file())


def resolve(settings: config.Dataset) -> Source:
    """Find the files of a dataset; of several, those that the settings name as another table are no interactions.

    Raises:
        DataError: Nothing is there, the format is unknown, or the files are of several formats.
    """
    base = base_path(settings.source)
    if base.is_dir():
        files, root = _inside(base, settings), base
    elif base.is_file():
        files, root = [base], base.parent
    else:
        files = _glob(str(base))
        root = next(folder for folder in base.parents if not glob.has_magic(str(folder)))
    if len(files) > 1:
        others = named_files(settings, root)
        files = [path for path in files if path not in others]
    if not files:
        raise DataError(f"source {settings.source!r} has no file: {_absence(base, settings.interactions)}")
    return Source(tuple(files), _format(files, settings), root)


def named_files(settings: config.Dataset, root: Path) -> list[Path]:
    """Where the tables of users, items and a knowledge graph should be that the settings name."""
    names = [entity.source for entity in (settings.users, settings.items) if entity]
    if settings.knowledge_graph is not None:
        names += settings.knowledge_graph.sources()
    return [root / name for name in names]


def names_apart(files: Sequence[Path]) -> list[str]:
    """What messages call the files: their names, or the paths below their common folder where a name repeats."""
    names = [path.name for path in files]
    if len(set(names)) == len(names):
        return names
    folder = os.path.commonpath([path.parent for path in files])
    return [path.relative_to(folder).as_posix() for path in files]


def base_path(source: str) -> Path:
    """The file, directory or pattern that ``dataset.source`` means.

    Raises:
        DataError: There is no such sample or data set.
    """
    kind, _, name = source.partition(":")
    if kind not in {"sample", "data"} or not name:
        return Path(source).expanduser()
    if kind == "sample":
        path = SAMPLES / name
        if not path.is_dir():
            known = sorted(p.name for p in SAMPLES.iterdir() if p.is_dir())
            raise DataError(f"unknown sample {name!r}; {did_you_mean(name, known)}")
        return path
    given = os.environ.get("RECSYS_DATA")
    homes = [Path(given)] if given else [Path("../shared/data"), PROJECT / "../shared/data"]
    found = [home / name for home in homes if (home / name).exists()]
    if not found:
        raise DataError(
            f"source {source!r} is not under {' or '.join(str(home) for home in homes)};"
            " set RECSYS_DATA to the directory of the data sets"
        )
    return found[0]


def _inside(base: Path, settings: config.Dataset) -> list[Path]:
    folder = Path(glob.escape(str(base)))
    files = _glob(str(folder / settings.interactions))
    if files or settings.interactions != config.Dataset.model_fields["interactions"].default:
        return files
    for guess in GUESSES:
        files = [path for path in _glob(str(folder / guess)) if path.suffix in SUFFIXES]
        if files and files[0].suffix == ".txt":
            return [path for name in ("train", "valid", "val", "test") for path in _glob(str(folder / f"{name}.txt"))]
        if files:
            return files
    return []


def _glob(pattern: str) -> list[Path]:
    anchor = Path(pattern).anchor or "."
    return sorted(path for path in Path(anchor).glob(str(Path(pattern).relative_to(anchor))) if path.is_file())


def _absence(base: Path, interactions: str) -> str:
    if base.is_dir():
        inside = did_you_mean(interactions, sorted(path.name for path in base.iterdir()))
        inside += "" if inside.endswith("?") else "."
        return f"the directory {base} has no file {interactions!r}; {inside} Set `interactions` to a file or glob in it"
    if base.exists() or base.is_symlink():
        return f"{base} is {'not a regular file' if base.exists() else 'a link to a file that is not there'}"
    if not base.parent.is_dir():
        return f"nothing is at {base}; the directory {base.parent} does not exist"
    return f"nothing is at {base}; {did_you_mean(base.name, sorted(path.name for path in base.parent.iterdir()))}"


def _format(files: list[Path], settings: config.Dataset) -> str:
    if settings.format != "auto":
        return settings.format
    for path in files:
        if path.suffix.lower() in PACKED:
            raise DataError(f"{path.name}: a compressed file; unpack it, and name the file that comes out")
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path.name}: cannot tell the format from the ending {path.suffix!r}; set `format` to parquet, csv,"
                " tsv, jsonl, recbole or lightgcn"
            )
    formats = sorted({SUFFIXES[path.suffix.lower()] for path in files})
    if len(formats) > 1:
        raise DataError(f"source {settings.source!r} mixes formats ({', '.join(formats)}); narrow the glob")
    return formats[0]


def source_fingerprint(settings: config.Dataset) -> str:
    """Quick key of a dataset's source for caches: names, sizes and modification times of every file it reads.

    Raises:
        DataError: As :func:`resolve`.
    """
    source = resolve(settings)
    digest = hashlib.sha256()
    for path in [*source.files, *source.beside(settings)]:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
