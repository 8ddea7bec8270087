"""`report`: one file that needs no other, axes with units, and what sweeps, duels and roofs are drawn of."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib import pyplot as plt
from typer.testing import CliRunner, Result

from fusedformer.benchmarks import commands
from fusedformer.benchmarks.machines import H200
from fusedformer.benchmarks.ops import TIMED_OPS
from fusedformer.benchmarks.report import axes as shared
from fusedformer.benchmarks.report import duels, rooflines, sweeps
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import RunFolder

ENVIRONMENT = {
    "packages": {"torch": "2.13"}, "gpus": [], "system": "Linux", "python": "3.12", "revision": "", "nvcc": "",
    "g++": "", "extension": "-", "cpu": "x", "cores": 2, "threads": 1, "memory_gib": 4,
}  # fmt: skip


def row(S: int, contender: str = "ours", seconds: float | None = None, **fields: Any) -> Row:
    """A forward of attention whose batch gets smaller as its sequences get longer."""
    seconds = 1e-9 * S**2 if seconds is None else seconds
    sizes = {"B": 2**14 // S, "S": S, "H": 16, "D": 64}
    known: dict[str, Any] = {
        "kind": "time", "subject": "attention", "case": " ".join(f"{k}={v}" for k, v in sizes.items()),
        "sizes": sizes, "options": {"causal": True}, "dtype": "bfloat16", "world": "gpu", "direction": "forward",
        "contender": contender, "time_p20_s": 0.9 * seconds, "time_p50_s": seconds, "time_p80_s": 1.1 * seconds,
        "rate": 500.0, "rate_unit": "TFLOP/s", "peak_memory_bytes": 2.0**20 * S, "flops": 5e14 * seconds,
        "n_bytes": 1e12 * seconds, "samples_s": (seconds,) * 6,
    }  # fmt: skip
    return Row(**known | fields)


def lost(one: Row, status: Any = "out of memory") -> Row:
    nothing: dict[str, Any] = dict.fromkeys(
        ("time_p20_s", "time_p50_s", "time_p80_s", "rate", "peak_memory_bytes", "ratio", "ratio_low", "ratio_high")
    )
    return replace(one, status=status, reason="why", samples_s=(), **nothing)


def against(one: Row, ratio: float) -> Row:
    return replace(one, ratio=ratio, ratio_low=ratio * 0.995, ratio_high=ratio * 1.005)


ROWS = [
    *(row(S) for S in (1024, 2048, 4096)),
    against(row(1024, "SDPA flash"), 1.3),
    against(row(2048, "SDPA flash"), 0.8),
    lost(row(4096, "SDPA flash")),
    against(row(4096, "SDPA math"), 1.005),
    lost(row(4096, "xFormers"), "missing"),
]


def write(path: Path, rows: Sequence[Row] = ROWS) -> Path:
    with RunFolder(path) as folder:
        for one in rows:
            folder.add(one)
        peaks = [dataclasses.asdict(H200)]
        folder.write_results(
            ENVIRONMENT, [], command="bench", peaks=peaks, noise={"cells": 9, "same": 9, "floor": 0.01}
        )
    return path


def of_cross_entropy() -> list[Row]:
    """As it is timed on a GPU: fewer rows of larger vocabularies."""
    cases = TIMED_OPS["cross_entropy"].time_cases["cuda"]
    return [
        row(1024, subject="cross_entropy", case=str(case), sizes=case.sizes, options={}, seconds=1e-3 * number)
        for number, case in enumerate(cases, 1)
    ]


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "DPI", 30)


class TestSweeps:
    def test_a_size_that_follows_from_the_swept_one_does_not_part_a_problem(self) -> None:
        ((key, (problem,)),) = sweeps.problems(ROWS).items()
        assert key == ("attention", "forward")
        assert (problem.axis, problem.label) == ("S", "D=64 causal=True bfloat16 gpu")

    def test_other_sizes_and_options_are_problems_of_their_own(self) -> None:
        wide = [replace(one, sizes={**one.sizes, "D": 128}) for one in ROWS]
        dense = [replace(one, options={"causal": False}) for one in ROWS]
        (several,) = sweeps.problems([*ROWS, *wide, *dense]).values()
        assert [problem.label.split(" bfloat16")[0] for problem in several] == [
            "D=64 causal=True", "D=128 causal=True", "D=64 causal=False",
        ]  # fmt: skip
        assert sweeps.problems(ROWS[:1]) == {}

    def test_panels_have_units_and_what_ran_out_of_memory_is_a_cross(self) -> None:
        (several,) = sweeps.problems(ROWS).values()
        figure = sweeps.draw_problems(several, sweeps.styles(ROWS), "attention, forward")
        time = figure.axes[0]
        assert [panel.get_ylabel() for panel in figure.axes] == [
            "time of a call (ms)", "rate (TFLOP/s)", "peak of memory (GiB)",
        ]  # fmt: skip
        assert {panel.get_xlabel() for panel in figure.axes} == {"sequence length S (tokens)"}
        crosses = [np.asarray(line.get_xdata()) for line in time.lines if line.get_marker() == "X"]
        assert [list(sizes) for sizes in crosses if len(sizes)] == [[4096]]
        (ours,) = [line for line in time.lines if line.get_label() == "ours"]
        assert list(np.asarray(ours.get_ydata())) == pytest.approx([1e-6 * S**2 for S in (1024, 2048, 4096)])
        assert "xFormers" not in [line.get_label() for line in time.lines]
        assert "measured" in figure.get_suptitle()
        plt.close(figure)

    def test_every_op_with_several_sizes_on_a_gpu_has_a_picture(self, tmp_path: Path) -> None:
        for op in TIMED_OPS.values():
            cases = op.time_cases["cuda"]
            rows = [row(1024, case=str(case), sizes=case.sizes, options=case.options) for case in cases]
            is_swept = any(len({case.sizes.get(name) for case in cases}) > 1 for name in "SNV")
            assert bool(sweeps.problems(rows)) == is_swept, op.name
        (key, (problem,)) = next(iter(sweeps.problems(of_cross_entropy()).items()))
        assert (key, problem.axis, problem.label) == (("cross_entropy", "forward"), "V", "bfloat16 gpu")
        (path,) = sweeps.draw(of_cross_entropy(), tmp_path)
        assert path.name == "sweep-cross_entropy-forward.png"
        figure = sweeps.draw_problems([problem], sweeps.styles(problem.rows), "cross_entropy, forward")
        assert {panel.get_xlabel() for panel in figure.axes} == {"vocabulary V (logits of a row)"}
        assert len(figure.axes) == 3  # time, rate and memory
        plt.close(figure)

    def test_twenty_contenders_look_different(self) -> None:
        rows = [row(1024, name) for name in ("ours", *map(str, range(20)))]
        known = sweeps.styles(rows)
        assert len(set(known.values())) == 21
        assert [name for name, (colour, *_) in known.items() if colour == shared.COLOURS[0]] == ["ours"]


class TestDuels:
    def test_the_best_other_is_met_and_losses_come_first(self) -> None:
        found = duels.duels(ROWS, margin=0.02)
        assert [(duel.best.contender, duel.outcome) for duel in found] == [
            ("SDPA flash", "win"), ("SDPA flash", "loss"), ("SDPA math", "even"),
        ]  # fmt: skip
        table = duels.duel_table(found)
        assert [line[0] for line in table.lines] == ["loss", "even", "win"]
        assert "loss: 1, even: 1, unsure: 0, win: 1" in table.notes[0]
        assert len({duel.line for duel in found}) == 1

    def test_ours_in_another_form_is_no_rival_however_fast(self) -> None:
        ours = row(1024)
        for name in ("ours, as in training", "ours, bfloat16", "ours, Hopper fused", "ours again", "ours, run-2"):
            fast = against(row(1024, name, 1e-9), 0.1)
            assert duels.duels([ours, fast], margin=0.02) == []
            (duel,) = duels.duels([ours, fast, against(row(1024, "oursonic"), 1.5)], margin=0.02)
            assert (duel.best.contender, duel.outcome) == ("oursonic", "win")

    def test_no_time_of_ours_is_a_loss_but_one_that_was_not_tried_is_none(self) -> None:
        theirs = row(1024, "SDPA flash")
        (duel,) = duels.duels([lost(row(1024), "wrong"), theirs], margin=0.02)
        assert (duel.ratio, duel.outcome) == (duels.LOST, "loss")
        assert duels.duels([lost(row(1024), "skipped"), theirs], margin=0.02) == []
        assert duels.duels([row(1024), lost(theirs)], margin=0.02) == []

    def test_every_cell_of_the_map_says_who_and_how_much(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[list[str]] = []

        def spy(figure: Any, path: Path) -> Path:
            drawn.append([text.get_text() for text in figure.axes[0].texts])
            return path

        monkeypatch.setattr(duels, "save", spy)
        found = duels.duels([*ROWS, lost(row(8192), "wrong"), row(8192, "SDPA flash")], margin=0.02)
        assert [path.name for path in duels.draw(found, tmp_path)] == ["duels-S.png"]
        assert drawn == [["1.30", "SDPA flash", "0.80", "SDPA flash", "~1.00", "SDPA math", "wrong", "SDPA flash"]]


def test_the_roofline_has_a_dot_of_ours_for_each_op_and_direction(tmp_path: Path) -> None:
    backward = [replace(one, direction="backward") for one in ROWS]
    found = rooflines.dots([*ROWS, *backward, lost(row(8192))])
    assert [(one.contender, one.direction, one.sizes["S"]) for one in found] == [
        ("ours", "forward", 4096), ("ours", "backward", 4096),
    ]  # fmt: skip
    assert rooflines.draw(ROWS, [], tmp_path / "a.png") == []
    assert rooflines.draw(ROWS, [H200], tmp_path / "a.png") == [tmp_path / "a.png"]


class Structure(HTMLParser):
    """Tags in their order, every one that opens also closed, and every link."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        assert tag != "img" or dict(attributes).get("alt")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "250", "NO_COLOR": "1"}).invoke(commands.app, ["report", *map(str, arguments)])


def test_the_report_of_a_run_is_one_file_that_needs_no_other(tmp_path: Path) -> None:
    output = tmp_path / "report"
    result = invoke(write(tmp_path / "run <b>"), "--output", output)
    assert (result.exit_code, str(output / "report.html") in result.output) == (0, True)
    pictures = sorted(path.name for path in (output / "plots").iterdir())
    assert pictures == ["duels-S.png", "roofline.png", "sweep-attention-forward.png"]
    text = (output / "report.html").read_text()
    page = Structure(text)
    assert page.tags.count("img") == len(pictures)
    assert all(link.startswith(("data:image/png;base64,", "#s")) for link in page.links)
    assert not re.search(r"https?:|@import|<script|url\(", text)
    assert "run &lt;b&gt;" in text
    summary = (output / "summary.md").read_text()
    linked = re.findall(r"\]\((.+?)\)", summary)
    assert [(output / link).is_file() for link in linked] == [True] * len(pictures)
    for part in ("| loss |", "SDPA flash", "out of memory: why", "xFormers, why", "Noise", "989 TFLOP/s"):
        assert part in summary
    assert "loss: 1, even: 1, unsure: 0, win: 1" in text


def test_runs_side_by_side_share_their_sweeps(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, ROWS[:3]) for name in ("before", "after")]
    output = tmp_path / "report"
    assert invoke(*runs, "--output", output).exit_code == 0
    names = {str(path.relative_to(output / "plots")) for path in (output / "plots").rglob("*.png")}
    assert names == {"sweep-attention-forward.png"} | {
        f"{run.name}/{name}.png" for run in runs for name in ("roofline", "sweep-attention-forward")
    }
    assert "All runs" in (output / "summary.md").read_text()


def test_what_one_run_alone_swept_is_drawn_once(tmp_path: Path) -> None:
    runs = [write(tmp_path / "swept", ROWS[:3]), write(tmp_path / "not", ROWS[:1])]
    output = tmp_path / "report"
    assert invoke(*runs, "--output", output).exit_code == 0
    assert [path.parent.name for path in output.rglob("sweep-*.png")] == ["swept"]
    assert "All runs" not in (output / "summary.md").read_text()


def test_the_roof_is_that_of_the_dtype() -> None:
    flops, seconds = 1e12, 1.0
    for dtype, peak in (("bfloat16", H200.matrix_flops), ("float32", H200.vector_flops)):
        one = row(1024, seconds=seconds, dtype=dtype, flops=flops, n_bytes=1.0)
        assert rooflines._share(one, H200) == pytest.approx(flops / peak)


def test_what_cannot_be_reported_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    other = write(tmp_path / "other" / "run")
    output = tmp_path / "report"
    for arguments, text in (
        ((tmp_path / "none",), "is no run folder"),
        ((run, other, "--output", output), "names must differ"),
        ((run, "--output", run), "is not an empty folder"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code, text in result.output) == (2, True)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"peaks": [{"name": "x"}]}))
    assert invoke(run, "--output", output).exit_code != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]
