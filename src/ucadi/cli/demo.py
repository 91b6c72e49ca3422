# SPDX-License-Identifier: Apache-2.0
"""`ucadi demo`: the whole main job, with a live view."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ucadi.cli.output import claim_folder, console_error, print_json

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("demo-out"),
    ct: Annotated[
        Path | None, typer.Option(help="A CT to read at the end [default: a synthetic one].")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 2, help="Same seed, same patients, same models.")
    ] = 2020,
    port: Annotated[
        int | None, typer.Option(min=1024, max=65535, help="The coordinator's port [default: a free one].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the results folder.")] = False,
) -> None:
    """Train a model with three synthetic hospitals and read a CT with it (about seven minutes)."""
    from ucadi.workflows.demo import STAGES, DemoSettings, check_inputs, run_demo

    check_inputs(out, ct, port)
    claim_folder(out, force=force, inputs=(ct,) if ct else ())
    with _View(STAGES) as view:
        summary = run_demo(out, ct, view.update, DemoSettings(seed=seed), port)
    if as_json:
        print_json(summary)
    else:
        typer.echo(_describe(summary, out))


class _View:
    """Stages with bars and the seconds left; plain lines when the output is not a terminal."""

    def __init__(self, stages: dict[str, tuple[str, float]]) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._stages = stages
        self._done = dict.fromkeys(stages, 0.0)
        self._started = time.monotonic()
        self._last_line = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", style="dim"),
            console=console_error(),
            disable=not console_error().is_terminal,
        )
        self._bars = {
            key: self._progress.add_task(title, total=1.0, start=False, words="")
            for key, (title, _) in stages.items()
        }

    def __enter__(self) -> "_View":
        usual = sum(seconds for _, seconds in self._stages.values())
        console_error().print(
            f"Three synthetic hospitals train together, then a CT is read. About {usual / 60:.0f} minutes "
            "on two cores; Ctrl-C ends everything cleanly."
        )
        self._progress.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._progress.stop()

    def update(self, stage: str, share: float, words: str) -> None:
        """Show how far a stage is."""
        if self._done[stage] == 0.0:
            self._progress.start_task(self._bars[stage])
        self._done[stage] = max(share, 1e-9)
        left = f"about {self._seconds_left():.0f} s left"
        self._progress.update(
            self._bars[stage], completed=share, words=f"{words}; {left}" if share < 1 else ""
        )
        if share >= 1:
            self._progress.stop_task(self._bars[stage])
        line = f"{self._stages[stage][0]}: {words}"
        if not console_error().is_terminal and line != self._last_line:
            elapsed = time.monotonic() - self._started
            console_error().print(f"[{elapsed:5.0f} s] {line} ({left})", markup=False, highlight=False)
            self._last_line = line

    def _seconds_left(self) -> float:
        """Return the usual time of what is left, scaled by how fast this machine was so far."""
        usual_done = sum(self._done[key] * seconds for key, (_, seconds) in self._stages.items())
        usual_all = sum(seconds for _, seconds in self._stages.values())
        pace = 1.0
        if usual_done > 10:  # too early to tell before
            pace = (time.monotonic() - self._started) / usual_done
        return max(0.0, (usual_all - usual_done) * pace)


def _describe(summary: dict[str, Any], out: Path) -> str:
    """Say in a few lines what a newcomer should take from the demonstration."""
    lines = [
        "",
        "What happened",
        "  Three hospitals (A, B, C) trained without any scan leaving its hospital:",
    ]
    lines.append("  only model updates travelled, over mutual TLS, to a coordinator that averaged them.")
    names = {"classifier": "Diagnosis (macro AUC)", "segmentation": "Lesion outline (Dice)"}
    lines += ["", "On held-out patients of a scanner that nobody trained on"]
    for task, title in names.items():
        result = summary[task]
        alone = result["single_site"]
        mean = sum(alone.values()) / len(alone)
        shown = ", ".join(f"{site} {value:.2f}" for site, value in alone.items())
        lines.append(f"  {title:24s} together {result['global']:.2f}   alone {mean:.2f} on average ({shown})")
    lines += ["", f"Open {out / 'report.html'}: the CT that was read with this model, and these curves."]
    lines.append(f"Released model: {out / 'model'}   all numbers: {out / 'summary.json'}")
    lines.append(f"{summary['seconds']:.0f} s, {summary['peak_memory_mb'] / 1024:.1f} GB of memory at most.")
    lines.append("Updates were not encrypted against the coordinator (protection: plaintext).")
    lines.append("Synthetic patients, research use only: nothing here says how the model does on people.")
    return "\n".join(lines)
