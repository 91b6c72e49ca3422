# SPDX-License-Identifier: Apache-2.0
"""The model card: what a released model is, was trained on, scored, and must not be used for."""

from collections.abc import Mapping
from pathlib import Path

from ucadi.io.checkpoint import ModelFolder, write_bytes
from ucadi.reporting.record import RESEARCH_NOTICE
from ucadi.types import Task
from ucadi.workflows.fit import METRIC, Measured

__all__ = ["write_model_card"]


def write_model_card(folder: Path, model: ModelFolder, scores: Mapping[Task, Mapping[str, Measured]]) -> None:
    """Write ``model_card.md`` beside the manifest.

    Args:
        folder: The model's folder.
        model: What was released.
        scores: On held-out studies, by task: ``global`` and each site's own model.
    """
    lines = [f"# Model card: {model.name}", "", f"Model `{model.model_id}`", "", f"**{RESEARCH_NOTICE}**", ""]
    lines += ["## Training", "", f"Trained on {model.trained_on}.", ""]
    lines += [
        "| task | network | input | sites | rounds | protection of updates |",
        "|---|---|---|---|---|---|",
    ]
    for task, card in model.cards.items():
        lines.append(
            f"| {task} | {card.network} | {card.preset} | {', '.join(card.sites)} | {card.rounds} "
            f"| {card.protection} |"
        )
    lines += ["", "## Held-out result", "", "Patients of a scanner that no site has; higher is better.", ""]
    lines += ["| task | measure | model | value | 95 % interval | studies |", "|---|---|---|---|---|---|"]
    for task, by_model in scores.items():
        for name, score in by_model.items():
            title = "**federated**" if name == "global" else f"site {name} alone"
            lines.append(
                f"| {task} | {METRIC[task]} | {title} | {score.value:.3f} "
                f"| {score.low:.3f} to {score.high:.3f} | {score.studies} |"
            )
    lines += [
        "",
        "One run with one seed: these numbers show that the path works, not how well the method does. The "
        "intervals are of a bootstrap over studies: what another run or seed would give is not in them.",
        "",
        "## Limits",
        "",
        "- Synthetic anatomy and disease; how the model behaves on patients is unknown.",
        "- Trained for minutes at a coarse resolution; small lesions are missed.",
        "- Updates travelled unencrypted to the coordinator where the table says plaintext.",
        "",
    ]
    write_bytes(folder / "model_card.md", "\n".join(lines).encode())
