import json
import sys
from pathlib import Path

import pytest

from benchmarks.harness import Paired, Row, finish, paired, summarise
from benchmarks.peer import Peer, PeerError, Timed, peer_python

WORKER = """
import sys
from benchmarks.worker import serve

def job(request):
    print("noise on stdout")
    if request["command"] == "fail":
        raise KeyError("no such thing")
    if request["command"] == "die":
        sys.exit(7)
    return {"seconds": 0.25, "quality": {"echo": request["value"], "args": sys.argv[1:]}}

if __name__ == "__main__":
    serve(job)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return script


def rows() -> list[Row]:
    fast = Paired([1.0, 2.0, 1.0], [4.0, 4.0, 8.0])
    slow = Paired([2.0], [2.0])
    return [
        Row.rate("fast", "peer 1", fast, work=10, unit="rows/s", limit=40.0, recall=0.5),
        Row.duration("slow", "peer 2", slow, limit=1.0),
    ]


def test_paired_alternates_abba_after_the_warmup() -> None:
    calls: list[str] = []
    pairs = paired(lambda: calls.append("A"), lambda: calls.append("B"), repeats=3, warmup=1)
    assert "".join(calls) == "BA" + "AB" + "BA" + "AB"
    assert len(pairs.ours_seconds) == len(pairs.theirs_seconds) == 3


def test_paired_takes_the_time_that_a_job_reports() -> None:
    pairs = paired(lambda: Timed(2.0, {"x": 1}), lambda: Timed(6.0), repeats=2)
    assert pairs.ours_seconds == [2.0, 2.0]
    assert pairs.ratio == 3.0
    assert pairs.ours_last == Timed(2.0, {"x": 1})


def test_paired_refuses_no_repeats() -> None:
    with pytest.raises(ValueError, match="repeats >= 1, got 0"):
        paired(list, list, repeats=0)


def test_ratio_is_of_the_medians_with_the_range_of_the_pairs() -> None:
    noisy = Paired([1.0, 2.0, 4.0], [8.0, 2.0, 4.0])
    assert (noisy.ratio, noisy.low, noisy.high) == (2.0, 1.0, 8.0)
    fast = rows()[0]
    assert (fast.ratio, fast.low, fast.high) == (4.0, 2.0, 8.0)
    assert (fast.ours, fast.theirs, fast.limit_fraction) == (10.0, 2.5, 0.25)
    assert rows()[1].limit_fraction == 0.5


def test_summary_of_several_rows_is_a_geometric_mean() -> None:
    summary = summarise("x", rows())
    assert summary["ratio"] == pytest.approx(2.0)
    assert summary["peer"] == "peer 1, peer 2"
    assert summary["ours"] == {"fast": 10.0, "slow": 2.0}
    assert summary["quality"]["fast"] == {"recall": 0.5}
    assert summarise("x", rows()[:1])["ours"] == 10.0


def test_finish_writes_a_file_and_ends_with_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish("x", rows(), tmp_path, scale=0.01) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(last) == ["name", "ratio", "peer", "ours", "theirs", "limit_fraction", "quality"]
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["summary"] == last
    assert result["rows"][0]["samples"]["theirs_seconds"] == [4.0, 4.0, 8.0]
    assert result["command"] == "recsys bench x --scale 0.01"
    assert result["probe"]["stream_gb_s"] > 0
    assert result["versions"]["torch"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_finish_refuses_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="benchmark x measured nothing"):
        finish("x", [], tmp_path)


def test_peer_runs_jobs_in_one_process_and_reports_failures(worker: Path) -> None:
    with Peer(Path(sys.executable), worker, ["--flag"]) as peer:
        timed = peer.run(value=3)
        assert (timed.seconds, timed.quality) == (0.25, {"echo": 3, "args": ["--flag"]})
        assert timed.peak_rss_mib > 5
        with pytest.raises(PeerError, match="no such thing"):
            peer.run("fail")
        assert peer.run(value=4).quality["echo"] == 4
        with pytest.raises(PeerError, match="ended with code 7"):
            peer.run("die")
        with pytest.raises(PeerError, match="ended with code 7"):
            peer.run(value=5)


def test_peer_must_be_started(worker: Path) -> None:
    with pytest.raises(PeerError, match="with Peer"):
        Peer(Path(sys.executable), worker).run()


def test_peer_python_is_cached_and_rebuilt_when_the_packages_change(tmp_path: Path) -> None:
    python = peer_python("none", [], tmp_path)
    created = python.lstat().st_mtime_ns
    assert peer_python("none", [], tmp_path) == python
    assert python.lstat().st_mtime_ns == created
    with pytest.raises(PeerError, match=r"install --quiet ./does-not-exist"):
        peer_python("none", ["./does-not-exist"], tmp_path)
    assert not (tmp_path / "none" / "packages.json").exists()
