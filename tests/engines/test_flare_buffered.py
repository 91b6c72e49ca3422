# SPDX-License-Identifier: Apache-2.0
"""Buffered aggregation over real processes and mutual TLS, with one site ten times slower than the others."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federations import ENV, SITES, do, make_run, prepared, records, set_site
from toy_app import ToyTrainer, toy_plan

from ucadi.engines.flare.kit import Kits
from ucadi.engines.flare.local import FlareFederation
from ucadi.federation.aggregation import PlaintextCipher, apply_total
from ucadi.federation.buffered import staleness_discount
from ucadi.federation.messages import GlobalModel
from ucadi.federation.plans import RoundPlan
from ucadi.tensors import unpack

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

FAST, SLOW = SITES[:2], SITES[2]
SECONDS = 0.3
SLOWNESS = 10
MODELS = 24


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    made = prepared(tmp_path_factory.mktemp("kits"), SITES)
    for site in FAST:
        set_site(made, site, f"seconds = {SECONDS}")
    set_site(made, SLOW, f"seconds = {SECONDS * SLOWNESS}")
    return made


@pytest.fixture(scope="module")
def run(kits: Kits) -> Iterator[Path]:
    """A finished run."""
    with FlareFederation(kits, ENV) as federation:
        made = make_run(kits, rounds=MODELS, buffer_size=2)
        do(federation, made, timeout_s=60.0)
        yield made


def model_times(run: Path) -> list[float]:
    """When each model was made, in seconds."""
    text = (run / "events.txt").read_text()
    return [float(time) for time in re.findall(r"^([\d.]+) RoundRecord", text, re.MULTILINE)]


def test_fast_sites_are_not_held_up_and_the_slow_one_contributes(run: Path) -> None:
    made = records(run)
    assert len(made) == MODELS
    assert all(len(set(record["participants"])) == 2 for record in made)
    times = model_times(run)
    lasted, training = times[-1] - times[0], SECONDS * SLOWNESS
    with_slow = [k for k, record in enumerate(made) if SLOW in record["participants"]]
    assert len(with_slow) >= 2
    # In rounds, each model would have taken as long as the slow site trains.
    assert lasted < 0.5 * (MODELS - 1) * training
    assert np.median(np.diff(times)) < 0.5 * training
    # While the slow site trains once, the others make several models.
    assert min(b - a for a, b in zip([-1, *with_slow], with_slow, strict=False)) >= 2
    assert not any(record["missing"] for record in made)


def test_each_update_counts_by_the_models_made_since_it_started(run: Path) -> None:
    """The models are those of a calculation that knows only who took part in which."""
    plan, model = toy_plan(run)
    models, started, delays = [model], dict.fromkeys(SITES, 1), []
    for record in records(run):
        total, number = PlaintextCipher().accumulator(models[-1]), record["round"]
        for site in record["participants"]:
            base = models[started[site] - 1]
            update = ToyTrainer(site).train(RoundPlan(plan, started[site], base.hash), base)
            total.add(update, staleness_discount(number - started[site]))
            delays.append(number - started[site])
            started[site] = number + 1
        models.append(apply_total(models[-1], total.open(), plan.weighting))
        parameters, _ = unpack((run / f"round-{number}.st").read_bytes())
        assert GlobalModel(number, parameters).hash == models[-1].hash
    assert max(delays) >= 2
    assert staleness_discount(3) == pytest.approx(1 / math.sqrt(4))
