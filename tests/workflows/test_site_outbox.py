# SPDX-License-Identifier: Apache-2.0
import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from site_homes import make_home, write_policy
from ucadi.errors import StoreError
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.messages import Call, Phase, Refusal, Update, decode_reply, encode_call
from ucadi.federation.ports import Outbox, ReplyKey
from ucadi.federation.site import Site
from ucadi.store.site_state import Decision
from ucadi.workflows.site_gate import SiteGate
from ucadi.workflows.site_outbox import SiteOutbox

PLAN = "99" * 32
KEY = ReplyKey("run-1", 2, Phase.TRAIN, "ab" * 32, PLAN)
BODY = b"an update" * 1000


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path)


@pytest.fixture
def make_outbox(home):
    """Opens the same outbox anew, as another process would."""
    states = []

    def build():
        states.append(home.open_state())
        return SiteOutbox(home.outbox, states[-1], recipient="hub at hub.example")

    yield build
    for state in states:
        state.close()


def files(home) -> list[Path]:
    return sorted(home.outbox.iterdir())


def test_an_outbox_fits_the_seam(make_outbox):
    assert isinstance(make_outbox(), Outbox)


def test_a_kept_reply_is_recalled_by_another_process(make_outbox, home):
    outbox = make_outbox()
    assert outbox.recall(KEY) is None
    outbox.keep(KEY, bytearray(BODY))
    assert make_outbox().recall(KEY) == BODY
    (path,) = files(home)
    assert path.stat().st_mode & 0o077 == 0
    assert home.outbox.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "other",
    [
        ReplyKey("run-2", 2, Phase.TRAIN, KEY.model_hash, PLAN),
        ReplyKey("run-1", 3, Phase.TRAIN, KEY.model_hash, PLAN),
        ReplyKey("run-1", 2, Phase.VALIDATE, KEY.model_hash, PLAN),
        ReplyKey("run-1", 2, Phase.TRAIN, "cd" * 32, PLAN),
        ReplyKey("run-1", 2, Phase.TRAIN, KEY.model_hash, "88" * 32),
    ],
)
def test_another_request_is_not_answered_with_a_kept_reply(make_outbox, other):
    outbox = make_outbox()
    outbox.keep(KEY, BODY)
    assert outbox.recall(other) is None


@pytest.mark.parametrize("damage", [b"", BODY[:-1], BODY[:-1] + b"X", BODY + b"X"])
def test_a_damaged_reply_is_dropped_and_made_anew(make_outbox, home, damage):
    outbox = make_outbox()
    outbox.keep(KEY, BODY)
    files(home)[0].write_bytes(damage)
    assert outbox.recall(KEY) is None
    assert files(home) == []
    outbox.keep(KEY, BODY)
    assert outbox.recall(KEY) == BODY


def test_a_reply_whose_file_is_gone_is_made_anew(make_outbox, home):
    outbox = make_outbox()
    outbox.keep(KEY, BODY)
    files(home)[0].unlink()
    assert outbox.recall(KEY) is None


def test_only_a_runs_current_round_is_kept(make_outbox, home):
    outbox = make_outbox()
    other = ReplyKey("run-2", 1, Phase.TRAIN, "cd" * 32, PLAN)
    outbox.keep(other, b"of another run")
    for number in range(1, 5):
        outbox.keep(ReplyKey("run-1", number, Phase.TRAIN, "ab" * 32, PLAN), BODY)
        outbox.keep(ReplyKey("run-1", number, Phase.VALIDATE, "ab" * 32, PLAN), b"score")
        assert len(files(home)) == 3
    assert outbox.recall(other) == b"of another run"
    assert outbox.recall(ReplyKey("run-1", 4, Phase.TRAIN, "ab" * 32, PLAN)) == BODY
    assert outbox.recall(ReplyKey("run-1", 3, Phase.TRAIN, "ab" * 32, PLAN)) is None


def test_replies_of_runs_that_never_went_on_are_dropped_after_a_month(make_outbox, home, monkeypatch):
    outbox = make_outbox()
    outbox.keep(ReplyKey("run-9", 7, Phase.TRAIN, "cd" * 32, PLAN), BODY)
    later = time.time() + 31 * 86400
    monkeypatch.setattr("ucadi.workflows.site_outbox.time.time", lambda: later)
    outbox.keep(KEY, BODY)
    assert outbox.recall(KEY) == BODY
    assert len(files(home)) == 1


def test_what_a_killed_process_left_is_cleared_away(make_outbox, home):
    outbox = make_outbox()
    outbox.keep(KEY, BODY)
    old, fresh = home.outbox / ".x.reply.1.tmp", home.outbox / ".y.reply.2.tmp"
    for path in (old, fresh):
        path.write_bytes(BODY)
    os.utime(old, (1, 1))
    outbox.keep(ReplyKey("run-1", 2, Phase.VALIDATE, KEY.model_hash, PLAN), b"score")
    assert not old.exists()
    assert fresh.exists(), "another process may be writing it"


@pytest.mark.parametrize(
    "name", ["../../../etc/cron.d/x", "/etc/passwd", "a" * 5000, "", "..", "a/b\0c", "\n", "ü"]
)
def test_no_name_of_a_run_leads_out_of_the_outbox(make_outbox, home, name):
    outbox, key = make_outbox(), ReplyKey(name, 1, Phase.TRAIN, name, name)
    outbox.keep(key, BODY)
    assert outbox.recall(key) == BODY
    (path,) = files(home)
    assert path.name.removesuffix(".reply").isalnum()


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EACCES, "file-error")])
def test_a_full_disk_is_named_and_nothing_half_written_is_recalled(make_outbox, monkeypatch, number, code):
    outbox = make_outbox()

    def fail(path, data):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("ucadi.workflows.site_outbox.write_bytes", fail)
        with pytest.raises(StoreError) as caught:
            outbox.keep(KEY, BODY)
    assert caught.value.code == code
    assert outbox.recall(KEY) is None
    outbox.keep(KEY, BODY)
    assert outbox.recall(KEY) == BODY


def test_every_message_that_leaves_is_noted_with_size_and_hash(
    make_outbox, home, make_round_plan, make_model
):
    outbox, plan = make_outbox(), make_round_plan(make_model())
    outbox.note("readiness", plan, b"ready")
    outbox.note("update", plan, bytearray(BODY))
    outbox.note("refusal", None, b"no")
    state = home.open_state()
    rows = state.sent()
    assert [(row.kind, row.run_id, row.round, row.size_bytes) for row in rows] == [
        ("readiness", "run-1", 1, 5),
        ("update", "run-1", 1, len(BODY)),
        ("refusal", "", 0, 2),
    ]
    assert rows[1].sha256 == hashlib.sha256(BODY).hexdigest()
    assert {row.protection for row in rows} == {"plaintext"}
    assert {row.recipient for row in rows} == {"hub at hub.example"}
    assert state.verify() == 3
    state.close()


def test_a_request_that_is_repeated_counts_once_and_another_one_anew(
    make_outbox, home, make_round_plan, make_model
):
    outbox, state = make_outbox(), home.open_state()
    plan, other = make_round_plan(make_model()), make_round_plan(make_model(seed=1))
    for asked in (plan, plan, other, other):
        outbox.note("validation", asked, b"the same score")
    outbox.note("update", plan, BODY)
    assert (state.answers_sent("run-1", "validation"), state.answers_sent("run-1", "update")) == (2, 1)
    state.close()


def test_a_reply_made_under_one_plan_never_leaves_under_another(
    make_outbox, home, make_trainer, make_round_plan, make_model
):
    write_policy(home, "min_sites = 2")
    state, model, trainer = home.open_state(), make_model(), make_trainer("A", scores=(0.75,))
    gate = SiteGate("A", state, home.read_policy, home.folder / "cohort")
    site = Site("A", trainer, PlaintextCipher(), make_outbox(), gate)
    first, second = make_round_plan(model), make_round_plan(model, metrics=("loss",))

    def ask(plan):
        return decode_reply(site.answer(encode_call(Call(Phase.TRAIN, plan, model))))

    def decide(plan, decision):
        assert state.decide(state.see(plan.run), decision, "ann")

    decide(first, Decision.APPROVED)
    assert ask(first).metrics == {"loss": 0.5, "validation": 0.75}
    decide(first, Decision.REJECTED)
    decide(second, Decision.APPROVED)
    assert ask(second).metrics == {"loss": 0.5}, "the score was not agreed to"
    assert trainer.asked == ["train", "train"]
    assert isinstance(ask(first), Refusal)
    state.close()


# A site whose training never gives the same numbers twice; it is killed before it could send.
ANSWER_ONCE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from ucadi.federation.aggregation import PlaintextCipher
from ucadi.federation.messages import Update
from ucadi.federation.site import OpenGate, Site
from ucadi.workflows.site_home import SiteHome
from ucadi.workflows.site_outbox import SiteOutbox


class Trainer:
    def readiness(self, plan): ...
    def validate(self, plan, model): ...

    def train(self, plan, model):
        rng = np.random.default_rng()
        tensors = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in model.parameters.items()}
        return Update(plan.run_id, plan.round, "A", tensors, 4, 1.0, 7)


home, call, out = map(Path, sys.argv[1:])
home = SiteHome.open(home)
site = Site("A", Trainer(), PlaintextCipher(), SiteOutbox(home.outbox, home.open_state()), OpenGate())
out.write_bytes(site.answer(call.read_bytes()))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_request_gets_the_same_bytes_after_the_process_was_killed(
    home, tmp_path, make_model, make_round_plan
):
    model = make_model()
    call, out = tmp_path / "call", tmp_path / "out"
    call.write_bytes(encode_call(Call(Phase.TRAIN, make_round_plan(model), model)))
    answers = []
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", ANSWER_ONCE, home.folder, call, out], check=False)
        assert ended.returncode == -signal.SIGKILL
        answers.append(out.read_bytes())
    assert answers[0] == answers[1]
    assert isinstance(decode_reply(answers[0]), Update)
    state = home.open_state()
    assert [row.sha256 for row in state.sent()] == [hashlib.sha256(answers[0]).hexdigest()] * 2
    assert state.verify() == 2
    state.close()
