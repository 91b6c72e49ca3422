# SPDX-License-Identifier: Apache-2.0
"""Everything that could keep a site from taking part, looked at before it does: what is found, and the cure.

No check stops the others. What needs the network, the kit or a cohort that is not there is skipped with the
reason. Nothing about a study leaves: the coordinator is asked for its time and to echo random bytes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ucadi.cohorts.cohort import read_cohort
from ucadi.config import CoordinatorAddress, Policy, SiteSettings
from ucadi.crypto.identity import Identity
from ucadi.engines.flare.kit import check_kit
from ucadi.enrolment.signing import sign_request
from ucadi.errors import FederationError, UcadiError
from ucadi.models.registry import NETWORKS
from ucadi.types import Task
from ucadi.workflows.cohort_check import summarize_cohort
from ucadi.workflows.join import read_membership
from ucadi.workflows.preflight_checks import Line, State, attempt, ok, skipped
from ucadi.workflows.preflight_checks_data import (
    Sample,
    check_classes,
    check_counts,
    check_rules,
    check_table,
    largest_preset,
    read_sample,
)
from ucadi.workflows.preflight_checks_machine import (
    check_certificate,
    check_disk,
    check_gpu,
    check_key_files,
    check_memory,
    check_versions,
)
from ucadi.workflows.preflight_checks_network import (
    Bandwidth,
    Route,
    SignRequest,
    ask_time,
    check_api,
    check_bandwidth,
    check_clock,
    check_engine,
    check_name,
    check_proxy,
    check_wire,
)
from ucadi.workflows.preflight_checks_training import (
    DryStep,
    StepProcess,
    StepRequest,
    check_round,
    check_step,
)
from ucadi.workflows.site_home import SiteHome

__all__ = ["PreflightResult", "run_preflight"]

OnLine = Callable[[Line], None]
"""Called with each line as soon as it is known."""

_BATCH = 4
_REPLIES_KEPT = 3
"""Replies in the outbox at a time: of the round under way, of the one before, and one being written."""

_NOT_JOINED = "the site has not joined: `ucadi site join INVITATION`"


@dataclass(frozen=True)
class PreflightResult:
    """All lines, in the order of the checks."""

    lines: tuple[Line, ...]

    @property
    def is_fine(self) -> bool:
        """Whether nothing failed."""
        return all(line.state is not State.FAILED for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Return a plain object."""
        counts = {state.value: sum(line.state is state for line in self.lines) for state in State}
        return {"is_fine": self.is_fine, "counts": counts, "lines": [asdict(line) for line in self.lines]}


def run_preflight(folder: Path, on_line: OnLine = lambda line: None) -> PreflightResult:
    """Make all checks of a site's home.

    Args:
        folder: The home.
        on_line: Told of each line at once; the checks take up to a minute in all.

    Raises:
        ConfigError: ``site-home-missing`` if the folder is no site's home.
    """
    run = _Run(SiteHome.open(folder), on_line)
    run.all_checks()
    return PreflightResult(tuple(run.lines))


@dataclass
class _Run:
    """One preflight under way: what earlier checks found is needed by later ones."""

    home: SiteHome
    on_line: OnLine
    lines: list[Line] = field(default_factory=list)
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    sample: Sample = field(default_factory=Sample)
    steps: list[DryStep] = field(default_factory=list)

    def all_checks(self) -> None:
        """Make all checks, the quick ones first."""
        settings, address = self._settings()
        policy = self._policy()
        self.look("versions", check_versions)
        self.look("key files", lambda: check_key_files(self.home.folder))
        self._kit()
        self._network(address)
        self._data(settings, policy)
        self.look("time of a round", lambda: check_round(self.steps, self.bandwidth))

    def look(self, name: str, check: Callable[[], Line | Iterable[Line]]) -> bool:
        """Make one check and tell its lines; return whether none failed and none was skipped."""
        made = attempt(name, check)
        for line in made:
            self.lines.append(line)
            self.on_line(line)
        return all(line.state in (State.OK, State.WARNING) for line in made)

    # -- settings and kit ---------------------------------------------------------------------------------

    def _settings(self) -> tuple[SiteSettings | None, CoordinatorAddress | None]:
        """Read ``site.toml``."""
        read: list[tuple[SiteSettings, CoordinatorAddress | None]] = []

        def check() -> Line:
            document = self.home.read_settings()
            read.append((document.site, document.coordinator))
            joined = f"joined as {document.coordinator.site}" if document.coordinator else "not joined yet"
            return ok("site.toml", f"valid; {joined}")

        self.look("site.toml", check)
        return read[0] if read else (None, None)

    def _policy(self) -> Policy | None:
        """Read ``policy.toml``."""
        read: list[Policy] = []

        def check() -> Line:
            policy = self.home.read_policy()
            read.append(policy)
            tasks = ", ".join(policy.tasks) or "no task"
            return ok("policy.toml", f"valid; plans are approved: {policy.approve}; {tasks}")

        self.look("policy.toml", check)
        return read[0] if read else None

    def _kit(self) -> None:
        """Check that the engine's hardened settings are as they were made."""

        def check() -> Line:
            card = check_kit(self.home.kit)
            return ok("kit", f"{len(card.files)} files of {card.name} as they were made, hardened")

        self._unless("" if self.home.kit.is_dir() else _NOT_JOINED, "kit", check)

    # -- network ------------------------------------------------------------------------------------------

    def _network(self, address: CoordinatorAddress | None) -> None:
        """Check certificate, way, clock and speed."""
        if address is None:
            for name in ("certificate", "name", "proxy", "API port", "engine port", "clock", "bandwidth"):
                self._unless(_NOT_JOINED, name, lambda: ())
            return
        startup, own_key = self.home.kit / "startup", self.home.keys / "tls.key"
        route = Route(
            address.host,
            address.api_port,
            address.port,
            self.home.keys / "authority.crt",  # as the invitation brought it
            startup / "client.crt",
            own_key,
        )
        self.look(
            "certificate",
            lambda: check_certificate(route.authority, route.certificate, route.key, address.site),
        )
        is_named = self.look("name", lambda: check_name(route))
        self.look("proxy", lambda: check_proxy(route))
        why = "" if is_named else "the name does not resolve"
        is_api = self._unless(why, "API port", lambda: check_api(route))
        self._unless(why, "engine port", lambda: check_engine(route))
        self._ask(route, address, "" if is_api else "the API port cannot be used")

    def _ask(self, route: Route, address: CoordinatorAddress, why: str) -> None:
        """Compare clocks and versions, and measure the link."""

        def check() -> Iterator[Line]:
            asked = ask_time(route)
            yield check_clock(asked)
            yield check_wire(asked)

        def measure() -> Line:
            line, self.bandwidth = check_bandwidth(route, self._signer(address))
            return line

        self._unless(why, "clock", check)
        self._unless(why, "bandwidth", measure)

    def _signer(self, address: CoordinatorAddress) -> SignRequest:
        """Return what signs requests with the site's key."""
        membership = read_membership(self.home)
        if membership.federation is None:
            raise FederationError("site-not-joined", f"{self.home.folder} has joined no federation.")
        identity = Identity.load(self.home.keys / "identity.key")
        return partial(sign_request, identity, address.site, membership.federation.identity)

    def _unless(self, why: str, name: str, check: Callable[[], Line | Iterable[Line]]) -> bool:
        """Make a check, or skip it with a reason."""
        return self.look(name, (lambda: skipped(name, why)) if why else check)

    # -- studies and training -----------------------------------------------------------------------------

    def _data(self, settings: SiteSettings | None, policy: Policy | None) -> None:
        """Check cohort, rules, training, memory and disk."""
        if settings is None or policy is None:
            why = f"{'site' if settings is None else 'policy'}.toml is not valid"
            for name in ("cohort", "reading", "dry step", "memory", "disk"):
                self._unless(why, name, lambda: ())
            return
        self.look("GPU", lambda: check_gpu(settings.threads))
        is_valid = self.look("cohort", lambda: check_table(settings.cohort))
        with StepProcess() as process:
            if is_valid:
                process.warm_up()
            self._studies(settings, policy, process, "" if is_valid else "the cohort is not valid")
        self.look("memory", lambda: check_memory(max((step.peak_bytes for step in self.steps), default=0)))
        self._disks(settings)

    def _studies(self, settings: SiteSettings, policy: Policy, process: StepProcess, why: str) -> None:
        """Count the studies, read some and train on them, unless there is a reason not to."""
        self._unless(why, "studies by class", lambda: check_counts(summarize_cohort(settings.cohort)))
        self._unless(why, "own rules", lambda: check_rules(settings, policy))
        self._unless(
            why, "own rules, metrics", lambda: check_classes(summarize_cohort(settings.cohort), settings)
        )
        self._unless(why, "reading", lambda: self._read(settings, policy))
        for task in policy.tasks:
            self._unless(why, f"dry step, {task}", partial(self._step, settings, policy, task, process))

    def _read(self, settings: SiteSettings, policy: Policy) -> Line:
        """Read some studies as for training."""
        line, self.sample = read_sample(read_cohort(settings.cohort), settings.cache, largest_preset(policy))
        return line

    def _step(self, settings: SiteSettings, policy: Policy, task: Task, process: StepProcess) -> Line:
        """Take one training step."""
        studies = tuple(s for s in self.sample.train if task is Task.CLASSIFIER or s.lesion_mask)
        networks = tuple(name for name in policy.networks if NETWORKS[name].task is task)
        batch = min(_BATCH, settings.max_batch_size, policy.max_batch_size)
        request = StepRequest(
            settings.cohort,
            studies,
            task,
            networks,
            largest_preset(policy),
            settings.cache,
            batch,
            settings.threads,
        )
        line, step = check_step(request, process)
        if step is not None:
            self.steps.append(step)
        return line

    def _disks(self, settings: SiteSettings) -> None:
        """Compare free space with what cache and outbox will take."""

        def cache() -> Line:
            return check_disk("disk, cache", settings.cache, self._cache_bytes(settings))

        def outbox() -> Line:
            model = max((step.model_bytes for step in self.steps), default=0)
            return check_disk("disk, outbox", self.home.outbox, _REPLIES_KEPT * model)

        self.look("disk, cache", cache)
        self.look("disk, outbox", outbox)

    def _cache_bytes(self, settings: SiteSettings) -> int:
        """Return what is still to come into the cache."""
        try:
            studies = len(read_cohort(settings.cohort).studies)
        except UcadiError:
            studies = 0  # said on its own line
        there = sum(file.stat().st_size for file in settings.cache.glob("*/*.npy"))
        return max(0, round(studies * self.sample.study_bytes) - there)
