# SPDX-License-Identifier: Apache-2.0
"""`ucadi train` and `ucadi simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from ucadi.cli.output import claim_folder, console_error, print_json
from ucadi.cli.progress import progress_bars
from ucadi.logs import log_to_file

__all__ = ["simulate", "train"]

ConfigFile = Annotated[Path, typer.Argument(help="Settings in a TOML file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the results folder.")]


def train(config: ConfigFile, out: Out, as_json: Json = False, force: Force = False) -> None:
    """Train one network on one cohort, or on several pooled."""
    from ucadi.config import TrainConfig, load_config
    from ucadi.workflows.train import train_local

    settings = load_config(TrainConfig, config)
    claim_folder(out, force=force, inputs=(config,))
    log_to_file(out / "log.jsonl")

    def tell(done: int, total: int, value: float | None) -> None:
        shown = "not defined" if value is None else f"{value:.3f}"
        console_error().print(f"step {done}/{total}  validation {shown}", highlight=False)

    with progress_bars() as show:
        model = train_local(settings, out, tell, show)
    left_out = model.run["left_out"]
    for code, count in left_out.items():
        console_error().print(
            f"studies left out: {count} x {code} (see {out / 'log.jsonl'})", highlight=False
        )
    metrics = dict(model.cards[settings.training.task].metrics)
    if as_json:
        print_json({"model_id": model.model_id, "metrics": metrics, "left_out": left_out})
    else:
        typer.echo(
            f"Model {model.model_id} in {out}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items())
        )


def simulate(config: ConfigFile, out: Out, as_json: Json = False, force: Force = False) -> None:
    """Run a whole federation in one process: same messages, same arithmetic, no network."""
    from ucadi.config import SimulateConfig, load_config
    from ucadi.workflows.federate import simulate as run
    from ucadi.workflows.site_runtime import build_site

    settings = load_config(SimulateConfig, config)
    claim_folder(out, force=force, inputs=(config,))
    log_to_file(out / "log.jsonl")
    outcome = run(settings, out, lambda name: build_site(name, settings.sites[name]))
    if as_json:
        rounds = [vars(record) for record in outcome.records]
        print_json({"selected_round": outcome.selected_round, "rounds": rounds, "seconds": outcome.seconds})
        return
    for record in outcome.records:
        shown = "-" if record.validation is None else f"{record.validation:.3f}"
        sites = ", ".join(record.participants) or "validation only"
        typer.echo(f"round {record.round}: {sites}; model of round {record.round - 1}: {shown}")
    typer.echo(f"Selected round {outcome.selected_round}; results in {out}")
