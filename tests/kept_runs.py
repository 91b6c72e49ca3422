# SPDX-License-Identifier: Apache-2.0
"""Complete runs on disk, of which tests make releases."""

from dataclasses import asdict

import pytest

from ucadi.errors import UcadiError
from ucadi.federation.plans import plan_document
from ucadi.federation.records import RoundRecord
from ucadi.io.checkpoint import write_json, write_tensors
from ucadi.workflows.release_card import CardWords

WORDS = CardWords(limits=("Small lesions are missed.",), licence="CC-BY-4.0")


def write_run(home, plan, make_model, *, studies=None, scores=((0.5, 0.4), (0.8, 0.6), (0.7, 0.9))):
    """Write the folder of a complete run of two rounds at sites A and B; round 2 was selected."""
    folder = home / "runs" / plan.run_id
    models = [make_model(made_in=number, seed=number) for number in range(3)]
    write_tensors(folder / "initial.safetensors", models[0].parameters)
    write_json(folder / "plan.json", plan_document(plan))
    for number in (1, 2, 3):
        a, b = scores[number - 1]
        model = models[min(number, 2)]
        record = RoundRecord(
            number,
            participants=["A", "B"] if number == 1 else ["A"] if number == 2 else [],
            metrics={"A": {"validation": a}, "B": {"validation": b}},
            validation=(a + b) / 2,
        )
        extra = {"studies": studies} if studies and number < 3 else {}
        write_json(
            folder / "rounds" / f"{number:04d}.json", {**asdict(record), "model_hash": model.hash, **extra}
        )
        if number < 3:
            write_tensors(folder / "rounds" / f"{number:04d}.safetensors", model.parameters)
    write_json(
        folder / "outcome.json", {"status": "completed", "selected_round": 2, "model_hash": models[2].hash}
    )
    return models


def overwrite(path, content):
    path.chmod(0o600)
    path.write_bytes(content)


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UcadiError) as caught:
        call(*arguments, **options)
    return caught.value.code
