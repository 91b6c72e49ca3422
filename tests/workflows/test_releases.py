# SPDX-License-Identifier: Apache-2.0
"""Releases: made of a run's records, signed, promoted, exported, checked, installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kept_runs import WORDS, overwrite, refusal, write_run
from ucadi.crypto.identity import Identity
from ucadi.errors import CheckpointError, ConfigError, NotAuthorizedError, UcadiError
from ucadi.federation.evaluation import Candidate, Cell, Matrix, Row
from ucadi.io.checkpoint import MANIFEST_FILE, read_model, write_tensors
from ucadi.store.audit import Audit
from ucadi.store.database import Database
from ucadi.store.releases import PromotionKind, ReleaseStore
from ucadi.store.runs import RunState, RunStore
from ucadi.tensors import hash_tensors
from ucadi.types import Task
from ucadi.workflows.cross_site import write_matrix
from ucadi.workflows.kept_models import read_run, run_folder
from ucadi.workflows.release_files import (
    RELEASE_FILE,
    ArchiveSource,
    FolderSource,
    check_release,
    check_release_name,
    install_release,
    sign_release,
    use_release,
)
from ucadi.workflows.releases import Shelf


@pytest.fixture
def identity(tmp_path):
    return Identity.make(tmp_path / "identity.key")


@pytest.fixture
def home(tmp_path, make_run_plan, make_model):
    """A coordinator's home with one complete run of the classifier."""
    folder = tmp_path / "coordinator"
    write_run(folder, make_run_plan(sites=("A", "B")), make_model, studies={"A": 40, "B": 12})
    return folder


@pytest.fixture
def database(tmp_path):
    opened = Database.open(f"sqlite:///{tmp_path / 'state.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def shelf(home, database, identity):
    return Shelf(home, database, identity.public_key, "ada")


@pytest.fixture
def release(shelf, identity):
    """Makes a release of the run and returns its folder."""

    def make(name="lung-1", run_ids=("run-1",), rounds=("best",)):
        shelf.release(name, run_ids, rounds, identity, WORDS)
        return shelf.folder(name)

    return make


# -- a run's models ----------------------------------------------------------------------------------------


def test_a_runs_models_are_numbered_hashed_and_known_by_their_worth(home):
    run = read_run(run_folder(home, "run-1"))
    assert sorted(run.hashes) == [0, 1, 2]
    assert all(run.model(number).hash == run.hashes[number] for number in run.hashes)
    assert (run.round_of("best"), run.round_of("last"), run.round_of("1")) == (2, 2, 1)
    assert run.own_best() == {"A": 1, "B": 2}
    assert run.validation_of(1) == pytest.approx(0.7)
    assert run.studies == {"A": 40, "B": 12}


def test_a_run_that_goes_on_has_a_best_model_so_far(home):
    (home / "runs/run-1/outcome.json").unlink()
    (home / "runs/run-1/rounds/0003.json").unlink()
    run = read_run(run_folder(home, "run-1"))
    assert (run.best, run.is_complete) == (1, False)


def test_scores_of_a_round_in_which_sites_judged_different_models_are_not_quoted(home):
    path = home / "runs/run-1/rounds/0002.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "validation": None}))
    run = read_run(run_folder(home, "run-1"))
    assert run.scores_of(1) == {}
    assert run.own_best() == {"A": 2, "B": 2}


@pytest.mark.parametrize("name", ["../run-1", "run-1/..", "", "RUN-1", "run-9", "run-1\0"])
def test_a_name_that_is_no_run_of_the_home_is_refused(home, name):
    assert refusal(run_folder, home, name) == "run-unknown"


def test_a_model_that_was_exchanged_on_disk_is_not_released(home, release, make_model):
    write_tensors(home / "runs/run-1/rounds/0002.safetensors", make_model(seed=9).parameters)
    assert refusal(release) == "model-mismatch"
    assert [path.name for path in (home / "releases").iterdir()] == [".lock"]


def test_a_model_that_is_not_the_one_in_the_audited_book_is_not_released(home, database, release, make_model):
    run = read_run(run_folder(home, "run-1"))
    book = RunStore(database)
    book.submit(run.plan, run.hashes[0])
    book.set_state("run-1", RunState.RUNNING)
    book.keep_round("run-1", run.records[0], run.hashes[1])
    release("honest", rounds=("1",))
    stranger = make_model(made_in=1, seed=7)  # model and record were exchanged on disk, both together
    write_tensors(home / "runs/run-1/rounds/0001.safetensors", stranger.parameters)
    path = home / "runs/run-1/rounds/0001.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "model_hash": stranger.hash}))
    assert refusal(release, "false", rounds=("1",)) == "model-mismatch"


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"run_id": 3}'])
def test_a_damaged_plan_is_refused_in_plain_words(home, damage):
    (home / "runs/run-1/plan.json").write_text(damage)
    assert refusal(read_run, home / "runs/run-1") == "checkpoint-invalid"


# -- what a release holds ----------------------------------------------------------------------------------


def test_a_release_is_a_model_folder_with_a_signed_statement(release, shelf, make_model):
    model = read_model(release())
    assert hash_tensors(model.parameters[Task.CLASSIFIER]) == make_model(seed=2).hash
    card = model.cards[Task.CLASSIFIER]
    assert (card.rounds, card.sites, card.protection) == (2, ("A", "B"), "plaintext")
    assert card.metrics == {"validation_macro_auc": pytest.approx(0.8)}
    assert model.trained_on == "classifier: 52 studies at 2 sites"
    assert shelf.verify("lung-1").model_id == model.model_id


@pytest.mark.parametrize(("word", "number"), [("best", 2), ("last", 2), ("1", 1), ("0", 0)])
def test_the_released_round_is_the_one_asked_for(release, shelf, word, number):
    release(rounds=(word,))
    assert shelf.card("lung-1")["networks"]["classifier"]["round"] == number


def test_two_runs_make_one_release_with_both_networks(home, release, make_run_plan, make_model):
    training = make_run_plan().training.__class__(Task.SEGMENTATION, "unet3d", "compact", 4, 2, 0.01)
    write_run(home, make_run_plan(run_id="run-2", sites=("A", "B"), training=training), make_model)
    model = read_model(release(run_ids=("run-2", "run-1"), rounds=("1", "best")))
    assert {task: card.rounds for task, card in model.cards.items()} == {
        Task.CLASSIFIER: 2,
        Task.SEGMENTATION: 1,
    }
    assert "not all counted" in model.trained_on


def test_two_runs_of_one_task_are_no_release(home, release, make_run_plan, make_model):
    write_run(home, make_run_plan(run_id="run-2", sites=("A", "B")), make_model)
    assert refusal(release, run_ids=("run-1", "run-2")) == "config-invalid"


@pytest.mark.parametrize("rounds", [(), ("1", "2")])
def test_rounds_that_do_not_fit_the_runs_are_refused(release, rounds):
    assert refusal(release, rounds=rounds) == "config-invalid"


def test_a_card_states_what_the_records_state(release, shelf):
    release()
    card = shelf.card("lung-1")
    network = card["networks"]["classifier"]
    assert network["sites"] == {
        "A": {
            "rounds": 2,
            "training_studies": 40,
            "validation": 0.7,
            "validation_studies": None,
            "interval_95": None,
        },
        "B": {
            "rounds": 1,
            "training_studies": 12,
            "validation": 0.9,
            "validation_studies": None,
            "interval_95": None,
        },
    }
    assert (card["licence"], card["parent"]) == ("CC-BY-4.0", None)
    assert "Small lesions are missed." in card["limits"]


def test_a_card_says_so_when_a_number_was_not_recorded(home, release, shelf):
    for path in (home / "runs/run-1/rounds").glob("*.json"):
        document = json.loads(path.read_bytes())
        document.update(metrics={}, validation=None)
        document.pop("studies", None)
        path.write_text(json.dumps(document))
    text = (release() / "model_card.md").read_text()
    assert "| A | 2 | not recorded | not recorded | not reported | not recorded |" in text
    assert "has no validation from A, B" in text
    assert read_model(shelf.folder("lung-1")).cards[Task.CLASSIFIER].metrics == {}


def test_a_card_quotes_intervals_that_sites_reported_in_a_cross_site_evaluation(home, release, shelf):
    run = read_run(home / "runs/run-1")
    cells = {"A": Cell(0.7, 20, 0.61, 0.79), "B": Cell(0.9), "C": Cell(0.66, 8, 0.4, 0.8)}
    row = Row(Candidate(2, run.hashes[2], ("best",)), cells, 0.75)
    write_matrix(run.folder, Matrix("run-1", ("A", "B", "C"), (row,)), Task.CLASSIFIER)
    release()
    sites = shelf.card("lung-1")["networks"]["classifier"]["sites"]
    assert sites["A"]["interval_95"] == [0.61, 0.79]
    assert sites["B"]["interval_95"] is None
    assert (sites["C"]["rounds"], sites["C"]["validation_studies"]) == (0, 8)
    assert "0.610 to 0.790" in (shelf.folder("lung-1") / "model_card.md").read_text()


def test_a_release_names_the_one_before_as_its_parent(release, shelf):
    release("lung-1")
    shelf.promote("lung-1")
    release("lung-2")
    parent = shelf.card("lung-2")["parent"]
    assert parent == {"name": "lung-1", "hash": shelf.statement("lung-1").hash}


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "current", "..", "a/b", "../a", ".a", "a.", "a..b", "A", "ä", "a b", "a\n", "a" * 64, "-a"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(release, name):
    assert refusal(release, name) == "release-name"


@given(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,62}", fullmatch=True))
def test_every_name_that_is_taken_is_one_plain_folder_name(name):
    try:
        check_release_name(name)
    except ConfigError:
        return
    assert Path(name).name == name
    assert name not in (".", "..", "current")


def test_a_name_is_never_given_twice(release, shelf):
    release()
    before = shelf.statement("lung-1").hash
    assert refusal(release) == "release-exists"
    assert shelf.verify("lung-1").hash == before


# -- promotion ---------------------------------------------------------------------------------------------


def test_rolling_back_leads_through_what_was_current_before(release, shelf):
    for name in ("a", "b", "c"):
        release(name)
        shelf.promote(name)
    seen = [shelf.current()]
    for _ in range(2):
        shelf.rollback()
        seen.append(shelf.current())
    assert seen == ["c", "b", "a"]
    assert refusal(shelf.rollback) == "release-unknown"
    shelf.promote("c")
    shelf.rollback()
    assert shelf.current() == "a"
    kinds = [promotion.kind for promotion in shelf.history()]
    assert kinds == [
        PromotionKind(k) for k in ["promoted"] * 3 + ["rolled_back"] * 2 + ["promoted", "rolled_back"]
    ]


def test_every_change_is_in_the_audit_log(release, shelf, database):
    release("a")
    release("b")
    shelf.promote("a")
    shelf.promote("a")
    shelf.promote("b")
    shelf.rollback()
    log = [(entry.actor, entry.action, entry.subject) for entry in Audit(database).entries()]
    assert log == [
        ("ada", "model-released", "a"),
        ("ada", "model-released", "b"),
        ("ada", "model-promoted", "a"),
        ("ada", "model-promoted", "b"),
        ("ada", "model-rolled-back", "a"),
    ]
    assert Audit(database).verify() == 5


def test_a_release_that_was_changed_is_not_promoted(release, shelf):
    folder = release()
    overwrite(folder / "model_card.md", b"The best model there is.")
    assert refusal(shelf.promote, "lung-1") == "release-altered"
    assert refusal(shelf.current) == "release-unknown"


def test_a_rollback_to_a_changed_release_changes_nothing(release, shelf):
    for name in ("a", "b"):
        release(name)
        shelf.promote(name)
    overwrite(shelf.folder("a") / "card.json", b"{}")
    assert refusal(shelf.rollback) == "release-altered"
    assert shelf.current() == "b"


def test_two_rollbacks_at_once_go_back_once(release, shelf, database):
    for name in ("a", "b", "c"):
        release(name)
        shelf.promote(name)
    store = ReleaseStore(database)
    before = store.previous()
    store.rollback("ada", before)
    assert refusal(store.rollback, "bob", before) == "store-conflict"
    assert shelf.current() == "b"


def test_a_release_of_another_signer_is_listed_with_its_fault(release, shelf, tmp_path, home, database):
    release()
    other = Shelf(home, database, Identity.make(tmp_path / "other.key").public_key)
    assert other.listing()["releases"] == [{"name": "lung-1", "created": "", "fault": "release-signer"}]
    assert shelf.listing()["releases"][0]["fault"] is None


# -- checking ----------------------------------------------------------------------------------------------


def statement_of(folder):
    return json.loads((folder / RELEASE_FILE).read_bytes())


def flip_a_byte(folder):
    path = folder / "classifier.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    overwrite(path, bytes(content))


def cut_a_file(folder):
    path = folder / "classifier.safetensors"
    overwrite(path, path.read_bytes()[:-1])


def lengthen_a_file(folder):
    path = folder / "model_card.md"
    overwrite(path, path.read_bytes() + b" ")


def add_a_file(folder):
    (folder / "hook.py").write_text("print()")


def add_a_folder(folder):
    (folder / "sub").mkdir()


def remove_a_file(folder):
    (folder / "card.json").unlink()


def replace_by_a_link(folder):
    path = folder / "card.json"
    shutil.copy(path, folder.parent / "copy.json")
    path.unlink()
    path.symlink_to(folder.parent / "copy.json")


def replace_by_a_pipe(folder):
    (folder / "card.json").unlink()
    os.mkfifo(folder / "card.json")


def edit_the_statement(change):
    def tamper(folder):
        document = statement_of(folder)
        change(document)
        overwrite(folder / RELEASE_FILE, json.dumps(document).encode())

    tamper.__name__ = change.__name__
    return tamper


def another_model_id(document):
    document["statement"]["model_id"] = "0" * 12


def a_path_among_the_files(document):
    document["statement"]["files"]["../../evil"] = {"sha256": "0" * 64, "bytes": 1}


def a_backslash_among_the_files(document):
    document["statement"]["files"]["..\\evil.json"] = {"sha256": "0" * 64, "bytes": 1}


def names_that_differ_in_case(document):
    document["statement"]["files"]["CARD.json"] = {"sha256": "0" * 64, "bytes": 1}


def a_size_without_bound(document):
    document["statement"]["files"]["card.json"]["bytes"] = 2**60


def a_field_more(document):
    document["statement"]["run"] = "rm"


def another_version(document):
    document["statement"]["release_version"] = 2


def a_name_that_leads_elsewhere(document):
    document["statement"]["name"] = "../../elsewhere"


def no_signature(document):
    document["signature"] = ""


def no_files(document):
    document["statement"]["files"] = {}


def a_list(document):
    document["statement"] = []


TAMPERING = [
    flip_a_byte,
    cut_a_file,
    lengthen_a_file,
    add_a_file,
    add_a_folder,
    remove_a_file,
    replace_by_a_link,
    replace_by_a_pipe,
    *map(
        edit_the_statement,
        [
            another_model_id,
            a_path_among_the_files,
            a_backslash_among_the_files,
            names_that_differ_in_case,
            a_size_without_bound,
            a_field_more,
            another_version,
            a_name_that_leads_elsewhere,
            no_signature,
            no_files,
            a_list,
        ],
    ),
]


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__)
def test_whatever_is_tampered_with_is_found_and_nothing_of_it_is_installed(
    release, identity, tmp_path, tamper
):
    folder = release()
    tamper(folder)
    key = identity.public_key
    codes = {"release-altered", "release-signer"}
    assert refusal(check_release, FolderSource(folder), key) in codes
    assert refusal(check_release, FolderSource(folder), None) in codes
    models = tmp_path / "site" / "models"
    assert refusal(install_release, FolderSource(folder), key, models) in codes
    assert [path.name for path in models.iterdir()] == [".lock"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_release_signed_by_somebody_else_is_refused(release, identity, tmp_path):
    folder = release()
    stranger = Identity.make(tmp_path / "stranger.key")
    with pytest.raises(NotAuthorizedError) as caught:
        check_release(FolderSource(folder), stranger.public_key)
    assert caught.value.code == "release-signer"
    assert check_release(FolderSource(folder), identity.public_key).name == "lung-1"


def test_a_signature_for_another_purpose_is_none(release, identity):
    folder = release()
    document = statement_of(folder)
    document["signature"] = identity.sign("roster", document["statement"])
    overwrite(folder / RELEASE_FILE, json.dumps(document).encode())
    assert refusal(check_release, FolderSource(folder), identity.public_key) == "release-signer"


def test_a_strangers_key_inside_the_release_does_not_help_him(release, identity, tmp_path):
    folder = release()
    stranger = Identity.make(tmp_path / "stranger.key")
    document = statement_of(folder)
    document["public_key"] = stranger.public_key
    document["signature"] = stranger.sign("model release", document["statement"])
    overwrite(folder / RELEASE_FILE, json.dumps(document).encode())
    assert refusal(check_release, FolderSource(folder), identity.public_key) == "release-signer"
    assert check_release(FolderSource(folder), None).public_key == stranger.public_key


# -- archives ----------------------------------------------------------------------------------------------


@pytest.fixture
def archive(release, shelf, tmp_path):
    release()
    path = tmp_path / "lung-1.zip"
    shelf.export("lung-1", path)
    return path


def rewrite(archive, change):
    """Write an archive anew with other members: pairs of a name, or a whole entry, and content."""
    with zipfile.ZipFile(archive) as reader:
        members = [(name, reader.read(name)) for name in reader.namelist()]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in change(members):
            writer.writestr(name, content)


def test_an_exported_release_is_installed_like_one_that_was_pulled(archive, identity, tmp_path):
    models = tmp_path / "models"
    statement, folder = install_release(ArchiveSource(archive), identity.public_key, models, is_used=True)
    assert check_release(FolderSource(folder), identity.public_key) == statement
    assert (models / "current").resolve() == folder
    assert read_model(models / "current").name == "lung-1"


def test_the_same_release_makes_the_same_archive(archive, shelf, tmp_path):
    shelf.export("lung-1", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


ODD_MEMBERS = {
    "a path upwards": lambda members: [*members, ("../evil.json", b"{}")],
    "an absolute path": lambda members: [*members, ("/evil.json", b"{}")],
    "a folder": lambda members: [*members, ("sub/", b"")],
    "an additional file": lambda members: [*members, ("readme.txt", b"hello")],
    "a missing file": lambda members: members[:-1],
    "a changed file": lambda members: [*members[:-1], (members[-1][0], members[-1][1] + b" ")],
    "a bomb": lambda members: [*members[:-1], (members[-1][0], b"\0" * 50_000_000)],
    "a huge statement": lambda members: [(RELEASE_FILE, b" " * 2_000_000), *members[1:]],
}


@pytest.mark.parametrize("change", ODD_MEMBERS.values(), ids=ODD_MEMBERS.keys())
def test_an_archive_with_odd_members_is_refused_and_leaves_nothing(archive, identity, tmp_path, change):
    rewrite(archive, change)
    before = set(tmp_path.rglob("*"))
    models = tmp_path / "site" / "models"
    assert refusal(install_release, ArchiveSource(archive), identity.public_key, models) == "release-altered"
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "site", models, models / ".lock"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_holds_a_name_twice_is_refused(archive, identity, tmp_path):
    rewrite(archive, lambda members: [*members, members[-1]])
    assert refusal(check_release, ArchiveSource(archive), identity.public_key) == "release-altered"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, make_run_plan, make_model):
    """An archive, the key that signed it and its statement."""
    folder = tmp_path_factory.mktemp("sealed")
    write_run(folder / "home", make_run_plan(sites=("A", "B")), make_model)
    identity = Identity.make(folder / "identity.key")
    database = Database.open(f"sqlite:///{folder / 'state.sqlite'}")
    shelf = Shelf(folder / "home", database, identity.public_key)
    shelf.release("lung-1", ["run-1"], ["best"], identity, WORDS)
    statement = shelf.export("lung-1", folder / "lung-1.zip")
    shutil.copy(folder / "lung-1.zip", folder / "packed.zip")
    rewrite(folder / "packed.zip", lambda members: members)
    yield folder / "lung-1.zip", identity.public_key, statement
    database.close()


@given(is_packed=st.booleans(), place=st.floats(0, 1), flip=st.integers(1, 255))
@settings(max_examples=300)
def test_an_archive_with_any_byte_changed_is_refused_or_says_the_same(sealed, is_packed, place, flip):
    archive, key, statement = sealed
    content = bytearray(archive.with_name("packed.zip" if is_packed else archive.name).read_bytes())
    content[int(place * (len(content) - 1))] ^= flip
    path = archive.with_name("flipped.zip")
    path.write_bytes(content)
    try:
        found, code = check_release(ArchiveSource(path), key), ""
    except UcadiError as error:
        found, code = None, error.code
    assert found == statement or code in {"release-altered", "release-signer"}


# -- installing --------------------------------------------------------------------------------------------


@pytest.fixture
def installed(release, identity, tmp_path):
    """A site's models with lung-1 installed and in use, and the folder of lung-2 at the coordinator."""
    models = tmp_path / "site" / "models"
    install_release(FolderSource(release("lung-1")), identity.public_key, models, is_used=True)
    return models, release("lung-2")


def test_installing_again_changes_nothing(installed, shelf, identity):
    models, _ = installed
    before = (models / "lung-1").stat().st_ino
    install_release(FolderSource(shelf.folder("lung-1")), identity.public_key, models)
    assert (models / "lung-1").stat().st_ino == before


def test_a_damaged_installation_is_replaced(installed, shelf, identity):
    models, _ = installed
    overwrite(models / "lung-1" / MANIFEST_FILE, b"{}")
    install_release(FolderSource(shelf.folder("lung-1")), identity.public_key, models)
    assert read_model(models / "current").name == "lung-1"
    assert {path.name for path in models.iterdir()} == {".lock", "current", "lung-1"}


def test_a_named_release_is_put_in_use_only_when_asked(installed, identity):
    models, second = installed
    install_release(FolderSource(second), identity.public_key, models)
    assert (models / "current").readlink().name == "lung-1"
    use_release(models, "lung-2")
    assert (models / "current").readlink().name == "lung-2"
    assert refusal(use_release, models, "lung-3") == "release-unknown"


def test_another_release_than_the_one_asked_for_is_refused(installed, identity):
    models, second = installed
    code = refusal(install_release, FolderSource(second), identity.public_key, models, name="lung-3")
    assert code == "release-altered"


def test_a_name_given_twice_by_the_coordinator_is_refused_at_the_site(installed, home, shelf, identity):
    models, _ = installed
    shutil.rmtree(home / "releases" / "lung-1")
    shelf.release("lung-1", ["run-1"], ["1"], identity, WORDS)
    code = refusal(install_release, FolderSource(shelf.folder("lung-1")), identity.public_key, models)
    assert code == "release-exists"
    assert read_model(models / "current").cards[Task.CLASSIFIER].rounds == 2


def test_readers_find_a_whole_model_while_the_current_one_changes(installed, identity):
    models, second = installed
    install_release(FolderSource(second), identity.public_key, models)
    faults, stop = [], threading.Event()

    def read_on():
        while not stop.is_set():
            try:
                read_model(models / "current")
            except CheckpointError as error:
                faults.append(error)

    reader = threading.Thread(target=read_on)
    reader.start()
    for turn in range(100):
        use_release(models, f"lung-{turn % 2 + 1}")
    stop.set()
    reader.join()
    assert faults == []


KILLED = """
import os, signal, sys
from pathlib import Path
from ucadi.workflows.release_files import FolderSource, install_release

class Cut(FolderSource):
    left = int(sys.argv[4])
    def blocks(self, name):
        for block in super().blocks(name):
            if name != "release.json":
                Cut.left -= 1
                if Cut.left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            yield block

install_release(Cut(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), is_used=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("blocks", range(4))
def test_a_pull_that_is_killed_leaves_the_release_in_use_as_it_was(installed, identity, blocks):
    models, second = installed
    command = [sys.executable, "-c", KILLED, str(second), identity.public_key, str(models), str(blocks)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert read_model(models / "current").name == "lung-1"
    assert not (models / "lung-2").exists()
    install_release(FolderSource(second), identity.public_key, models, is_used=True)
    assert read_model(models / "current").name == "lung-2"
    assert {path.name for path in models.iterdir()} == {".lock", "current", "lung-1", "lung-2"}


def test_parameters_that_cannot_be_loaded_are_not_installed_even_when_signed(tmp_path, identity, release):
    folder = release()
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    (wrong / RELEASE_FILE).unlink()
    overwrite(wrong / "classifier.safetensors", np.zeros(8, np.uint8).tobytes())
    sign_release(wrong, identity, name="wrong", model_id="0", created="2026", ucadi_version="0", parent=None)
    assert check_release(FolderSource(wrong), identity.public_key).name == "wrong"
    models = tmp_path / "site" / "models"
    code = refusal(install_release, FolderSource(wrong), identity.public_key, models)
    assert code == "checkpoint-invalid"
    assert [path.name for path in models.iterdir()] == [".lock"]
