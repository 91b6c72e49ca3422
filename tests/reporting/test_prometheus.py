# SPDX-License-Identifier: Apache-2.0
from prometheus_client.parser import text_string_to_metric_families

from ucadi.reporting.prometheus import FederationNumbers, RunNumbers, render

RUN = RunNumbers(
    run_id="run-1",
    state="running",
    round=3,
    rounds=10,
    participants=2,
    missing={"site-lost": 1},
    validation=0.75,
    site_validation={"A": 0.5, "B": 1.0},
    upload_bytes=1234,
    phase_seconds={"train": 12.5},
    waiting=True,
)


def read(numbers):
    """What Prometheus' own parser reads: values by name and labels."""
    families = text_string_to_metric_families(render(numbers).decode())
    return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def test_a_parser_reads_back_what_was_given():
    found = read(FederationNumbers((RUN,), ("queued", "running"), {"approved": 3, "revoked": 1}))
    run = ("run", "run-1")
    assert found == {
        ("ucadi_sites", ("state", "approved")): 3,
        ("ucadi_sites", ("state", "revoked")): 1,
        ("ucadi_runs", ("state", "queued")): 0,
        ("ucadi_runs", ("state", "running")): 1,
        ("ucadi_run_round", run): 3,
        ("ucadi_run_planned_rounds", run): 10,
        ("ucadi_run_waiting", run): 1,
        ("ucadi_run_participants", run): 2,
        ("ucadi_run_validation", run): 0.75,
        ("ucadi_run_upload_bytes_total", run): 1234,
        ("ucadi_run_missing", ("reason", "site-lost"), run): 1,
        ("ucadi_run_site_validation", run, ("site", "A")): 0.5,
        ("ucadi_run_site_validation", run, ("site", "B")): 1,
        ("ucadi_run_phase_seconds", ("phase", "train"), run): 12.5,
    }


def test_a_run_that_no_site_has_judged_has_no_score():
    found = read(FederationNumbers((RunNumbers("run-2", "queued", 0, 5),), (), {}))
    assert ("ucadi_run_round", ("run", "run-2")) in found
    assert not [key for key in found if key[0] == "ucadi_run_validation"]


def test_a_federation_without_runs_and_sites_is_reported():
    assert b"# TYPE ucadi_runs gauge" in render(FederationNumbers((), (), {}))
