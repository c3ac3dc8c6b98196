"""The rules of docs/architecture.md that a syntax tree can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["embeddings", "recsys", "pipelines"]
"""Each may import itself and those before it."""
ONLY_IN = {
    "mlflow": ["pipelines/tracking.py", "pipelines/*model_from_code.py"],
    "polars": ["pipelines/*"],
    "pandas": ["pipelines/*model_from_code.py"],
    "optuna": ["pipelines/sweep/study.py"],
    "networkx": ["embeddings/graph_export.py"],
    "fbgemm_gpu": ["embeddings/tables/*"],
    "torchrec": ["embeddings/tables/*"],
    "typer": ["pipelines/cli*.py"],
    "jinja2": ["pipelines/report/*"],
    "pydantic": ["pipelines/*"],
}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.load", "torch.save", "np.save", "os.system"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CONSTRUCTOR_ARGUMENTS = 400, 70, 8
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]

each_source = pytest.mark.parametrize("path", SOURCES, ids=NAMES)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield node.lineno, module


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@each_source
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"tests", "benchmarks"}
    wrong = [(line, name) for line, name in imports(parse(path)) if name.split(".")[0] in above]
    assert not wrong, f"{layer} imports from above itself: {wrong}"


@each_source
def test_a_heavy_dependency_is_imported_in_its_one_place(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    wrong = [
        (line, module)
        for line, module in imports(parse(path))
        if not any(fnmatch(name, place) for place in ONLY_IN.get(module.split(".")[0], ["*"]))
    ]
    assert not wrong, f"move these to {ONLY_IN}: {wrong}"


@each_source
def test_nothing_that_executes_data(path: Path) -> None:
    tree = parse(path)
    wrong = [(line, name) for line, name in imports(tree) if name.split(".")[0] in FORBIDDEN_IMPORTS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                wrong.append((node.lineno, called))
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "np.load" and keywords.get("allow_pickle") != "False":
                wrong.append((node.lineno, "np.load without allow_pickle=False"))
            if keywords.get("shell") == "True":
                wrong.append((node.lineno, f"{called}(shell=True)"))
    assert not wrong


@each_source
def test_files_and_functions_fit_a_screen(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{lines} lines"
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, Function)]
    long = {node.name: size for node in functions if (size := body_lines(node)) > MAX_FUNCTION_LINES}
    assert not long, f"functions over {MAX_FUNCTION_LINES} lines without their docstring: {long}"
    wide = {
        f"line {node.lineno}": count
        for node in functions
        if node.name == "__init__"
        and (count := len(node.args.args + node.args.kwonlyargs) - 1) > MAX_CONSTRUCTOR_ARGUMENTS
    }
    assert not wide, f"constructors with over {MAX_CONSTRUCTOR_ARGUMENTS} arguments: {wide}"


def body_lines(node: Function) -> int:
    """Lines of a function without its docstring."""
    docstring = node.body[0] if ast.get_docstring(node) else None
    inside = docstring.end_lineno - docstring.lineno + 1 if docstring and docstring.end_lineno else 0
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1 - inside


@each_source
def test_no_relative_and_no_star_imports(path: Path) -> None:
    nodes = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)]
    wrong = [ast.unparse(node) for node in nodes if node.level or any(alias.name == "*" for alias in node.names)]
    assert not wrong


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names), "pytest imports test files by base name"


def test_importing_the_command_line_and_the_library_stays_light() -> None:
    code = (
        "import sys, pipelines.cli\n"
        "heavy = {'torch', 'polars', 'mlflow', 'pandas', 'numba', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, f'pipelines.cli imports {heavy}'\n"
        "import recsys, embeddings\n"
        "heavy = {'polars', 'mlflow', 'pandas', 'networkx', 'fbgemm_gpu', 'torchrec'} & set(sys.modules)\n"
        "assert not heavy, f'recsys imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
