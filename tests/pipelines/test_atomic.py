import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.atomic import atomic_directory, copy_tree, finite, write_bytes, write_json, write_text


def test_files_are_written_with_their_directories(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b", b"x")
    write_text(tmp_path / "t", "é")
    write_json(tmp_path / "j", {"a": [1, None]})
    assert (tmp_path / "a" / "b").read_bytes() == b"x"
    assert (tmp_path / "t").read_text(encoding="utf-8") == "é"
    assert json.loads((tmp_path / "j").read_text()) == {"a": [1, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "j", "t"]


def test_nan_is_not_json_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "j", 1)
    with pytest.raises(ValueError, match="Out of range float values are not JSON"):
        write_json(tmp_path / "j", float("nan"))
    assert (tmp_path / "j").read_text() == "1\n"
    write_json(tmp_path / "j", finite({"a": (1.5, float("nan"), [float("-inf")])}))
    assert json.loads((tmp_path / "j").read_text()) == {"a": [1.5, None, [None]]}


def test_a_failed_block_leaves_the_old_content_alone(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as path:
        (path / "x").write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomic_directory(tmp_path / "d") as path:
        (path / "x").write_text("half")
        raise RuntimeError("stop")
    assert (tmp_path / "d" / "x").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with atomic_directory(tmp_path / "d") as path:
            (path / "sub").mkdir()
            (path / "sub" / name).write_text(name)
    assert [path.name for path in (tmp_path / "d" / "sub").iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


KILLED = """
import sys, time
from pathlib import Path
from pipelines.atomic import atomic_directory
with atomic_directory(Path(sys.argv[1])) as path:
    (path / "x").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as path:
        (path / "x").write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "d")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert (tmp_path / "d" / "x").read_text() == "old"


def test_a_copied_tree_takes_the_place_of_an_older_one_and_of_a_killed_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "there"
    for directory, name in ((source, "a"), (target, "old"), (tmp_path / ".there.tmp", "half")):
        directory.mkdir()
        (directory / name).write_text(name)
    copy_tree(source, target)
    assert [path.name for path in target.iterdir()] == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "there"]
