import json

import pytest

from fastnas.report.metrics import read_metrics


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return read_metrics(path)


def entry(epoch, loss=1.0, phase="search", **more):
    return {"phase": phase, "epoch": epoch, "loss": loss, **more}


def test_two_trainings_with_their_parts(tmp_path):
    metrics = write(
        tmp_path / "m",
        entry(0.5, 2.0, losses={"rpn_box": 0.5}, images_per_second=30),
        entry(1.0, 1.0, losses={"rpn_box": 0.25, "head_box": 0.5}, images_per_second=31),
        {"phase": "search", "epoch": 1.0, "ap": 0.3},
        entry(0.5, 0.9, phase="final"),
    )
    search, final = metrics.trainings["search"], metrics.trainings["final"]
    assert search.epochs == [0.5, 1.0]
    assert search.losses == {"total": [2.0, 1.0], "rpn_box": [0.5, 0.25], "head_box": [None, 0.5]}
    assert search.images_per_second == [30, 31]
    assert final.losses == {"total": [0.9]}
    assert metrics.bad_lines == 0


def test_missing_file(tmp_path):
    assert read_metrics(tmp_path / "no").missing


BAD = ['{"phase": "sea', "[]\n", '"x"\n', '{"phase": 1, "epoch": 1}\n', '{"phase": "search"}\n', "[" * 100_000]


@pytest.mark.parametrize("bad", BAD)
def test_bad_lines_are_counted_and_skipped(tmp_path, bad):
    metrics = write(tmp_path / "m", entry(1), bad)
    assert metrics.bad_lines == 1
    assert metrics.trainings["search"].epochs == [1]


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "m").write_bytes(b"\xff\x00\xfe\n" + json.dumps(entry(1)).encode())
    metrics = read_metrics(tmp_path / "m")
    assert metrics.bad_lines == 1 and metrics.trainings["search"].epochs == [1]


def test_what_is_not_finite_becomes_a_gap(tmp_path):
    metrics = write(tmp_path / "m", entry(1, 0.5), entry(2, float("nan")), entry(3, float("inf")), entry(4, 10**400))
    assert metrics.trainings["search"].losses["total"] == [0.5, None, None, None]


def test_error_and_a_second_start(tmp_path):
    metrics = write(tmp_path / "m", entry(1), entry(2), {"phase": "search", "epoch": 2, "error": "NaN"}, entry(1))
    training = metrics.trainings["search"]
    assert training.error == "NaN"
    assert training.epochs == [1, 2, None, 1]
