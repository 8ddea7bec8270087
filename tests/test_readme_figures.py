"""`report --readme`: the newest results of a checkout between two markers of its README, and nothing else changed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from test_docs import unfounded
from typer.testing import CliRunner

from fusedformer.benchmarks import commands
from fusedformer.benchmarks.report import readme_figures
from fusedformer.benchmarks.report.readme_figures import BEGIN, END, NOTHING
from fusedformer.benchmarks.report.rows import Row
from fusedformer.benchmarks.report.run_folder import RunFolder

ENVIRONMENT = {"packages": {"torch": "2.11", "triton": "3.6.0"}, "gpus": [{"name": "NVIDIA H200"}]}
BEFORE, AFTER = "# fusedformer\n\n", "\n\n## Install\n"
OURS = Row(
    kind="time", subject="attention", case="B=4 S=4096", sizes={"B": 4, "S": 4096}, dtype="bfloat16", world="gpu",
    direction="forward", contender="ours", time_p50_s=1.234e-3, rate=600.0, rate_unit="TFLOP/s", peak_share=0.756,
)  # fmt: skip
THEIRS = replace(
    OURS, contender="SDPA cuDNN", time_p50_s=1.111e-3, ratio=0.90, ratio_low=0.89, ratio_high=0.91, peak_share=0.84
)


def rows_of(subject: str, **fields: Any) -> list[Row]:
    return [replace(row, subject=subject, **fields) for row in (OURS, THEIRS)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(f"{BEFORE}{BEGIN}\nold\n{END}{AFTER}")
    return tmp_path


def measure(checkout: Path, folder: str, *rows: Row, run: str = "bench") -> None:
    with RunFolder(checkout / "results" / folder / run) as written:
        for row in rows:
            written.add(row)
        written.write_results(ENVIRONMENT, [], command="bench")


def stop(path: Path, *rows: Row) -> None:
    """A run that is stopped before its end."""
    with RunFolder(path) as folder:
        folder.write_settings(ENVIRONMENT, command="bench")
        for row in rows:
            folder.add(row)
        raise KeyboardInterrupt


def written(checkout: Path) -> str:
    text = (checkout / "README.md").read_text()
    assert text.startswith(BEFORE + BEGIN)
    assert text.endswith(END + AFTER)
    return text.removeprefix(f"{BEFORE}{BEGIN}\n").removesuffix(f"\n{END}{AFTER}")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_without_results_it_says_that_nothing_was_measured(checkout: Path) -> None:
    (checkout / "results" / "nvidia-h200" / "2026-11-22").mkdir(parents=True)  # of a run that came to nothing
    (checkout / "results" / "static.json").write_text("[]")
    assert readme_figures.update(checkout)
    assert written(checkout) == NOTHING
    assert not readme_figures.update(checkout)


def test_the_newest_folder_is_told_with_gpu_and_day(checkout: Path) -> None:
    slow = [replace(row, time_p50_s=9.0) for row in (OURS, THEIRS)]
    for folder in ("nvidia-h200/2026-11-22-2", "nvidia-h200/2026-11-22-9", "nvidia-a100/2025-12-31", "notes/other"):
        measure(checkout, folder, *slow)
    measure(checkout, "nvidia-h200/2026-11-22-10", OURS, THEIRS)
    assert readme_figures.update(checkout)
    text = written(checkout)
    assert text.startswith("Measured on NVIDIA H200 on 2026-11-22 with torch 2.11, triton 3.6.0: ")
    assert "`results/nvidia-h200/2026-11-22-10`" in text
    assert lines(text) == [
        "| attention forward | B=4 S=4096 bfloat16 | 1.23 ms | SDPA cuDNN, 1.11 ms | 0.90 [0.89, 0.91] | 76% |"
    ]
    assert unfounded(text, [1.234, 1.111]) == []
    assert not readme_figures.update(checkout)


def test_one_line_for_each_op_and_direction_losses_too_and_no_model(checkout: Path) -> None:
    no_time: dict[str, Any] = {"time_p50_s": None, "peak_share": None, "status": "wrong", "reason": "NaN"}
    measure(
        checkout, "nvidia-h200/2026-11-22",
        *rows_of("attention"), *rows_of("attention", case="B=1 S=9"), *rows_of("attention", direction="backward"),
        *rows_of("attention", direction="forward + backward"), replace(OURS, contender="ours, Hopper"),
        replace(OURS, subject="softmax", **no_time), replace(THEIRS, subject="softmax", ratio=None),
        *rows_of("decoder"), *rows_of("gelu", world="reference"), *rows_of("rms_norm", obtained="modelled"),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        stop(checkout / "results" / "nvidia-h200" / "2026-11-22" / "bench-fp8", *rows_of("attention_fp8"))
    readme_figures.update(checkout)
    found = [re.split(r" *\| *", line.strip("| ")) for line in lines(written(checkout))]
    assert [line[0] for line in found] == [
        "attention forward", "attention backward", "softmax forward",
        "attention_fp8 forward, with FUSEDFORMER_HOPPER=1",
    ]  # fmt: skip
    assert found[0][1] == "B=4 S=4096 bfloat16"
    assert found[2][2:] == ["wrong", "SDPA cuDNN, 1.11 ms", "-", "-"]


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_readme_without_the_markers_stays_what_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match="nowhere to write figures to"):
        readme_figures.update(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    with pytest.raises(ValueError, match="nowhere to write figures to"):
        readme_figures.update(tmp_path / "none")


def test_the_readme_of_this_checkout_is_up_to_date() -> None:
    text = (readme_figures.ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n{readme_figures.figures(readme_figures.ROOT)}\n{END}" in text


def test_the_command_takes_runs_or_the_readme(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme_figures.update, "__defaults__", (checkout,))

    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(commands.app, ["report", *arguments])
        return result.exit_code, result.output

    assert invoke("--readme") == (0, "README.md: written anew\n")
    assert invoke("--readme") == (0, "README.md: up to date\n")
    for arguments in ((), ("--readme", "--output", str(checkout / "out"))):
        status, output = invoke(*arguments)
        assert (status, "takes folders of runs, or --readme alone" in output) == (2, True)
    (checkout / "README.md").write_text("")
    assert invoke("--readme")[0] == 2
