"""The run folder: whose it is, what a new run removes and what a killed one leaves.  Nothing here trains."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cropreg.dataset
from cropreg import checkpoint, runs
from cropreg.dataset import MEAN, STD
from cropreg.errors import InputError, OutputError, UsageError
from cropreg.model import Architecture
from cropreg.pipelines import train
from cropreg.schema import BoxDataset, csv_bytes
from cropreg.settings import TrainSettings
from cropreg.training import EpochResult, Progression

SETTINGS = TrainSettings(weights="none", image_side=64, max_epochs=2, batch_size=8, num_workers=0)


@pytest.fixture
def dataset(made_boxes: Path) -> BoxDataset:
    return BoxDataset.open(str(made_boxes))


def changed(**values: Any) -> TrainSettings:
    return SETTINGS.model_copy(update=values)


def take(out: Path, dataset: BoxDataset, settings: TrainSettings) -> str:
    state = runs.state_of(str(out), dataset, settings)
    runs.take_folder(state, str(out), dataset, settings)
    return state


def learned(out: Path, epochs: int) -> None:
    """Leaves what a run of so many finished epochs leaves, as far as it is looked at here."""
    (out / "metrics.csv").write_text("epoch\n" + "".join(f"{epoch}\n" for epoch in range(epochs)))
    (out / "checkpoints/last").mkdir(parents=True, exist_ok=True)
    (out / "checkpoints/last/checkpoint.json").write_text("{}")


def test_resumed_run_goes_by_the_settings_it_was_resumed_with(tmp_path: Path, dataset: BoxDataset) -> None:
    assert take(tmp_path / "run", dataset, SETTINGS) == "new"
    learned(tmp_path / "run", 2)
    assert take(tmp_path / "run", dataset, changed(resume=True)) == "begun"
    (tmp_path / "run" / "finished.json").write_text("{}")
    assert runs.state_of(str(tmp_path / "run"), dataset, changed(resume=True)) == "finished"
    longer = changed(resume=True, max_epochs=5)
    assert take(tmp_path / "run", dataset, longer) == "begun"
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["settings"]["max_epochs"] == 5 and facts["boxes"] == dataset.uri
    (tmp_path / "run" / "finished.json").write_text("{}")
    assert runs.state_of(str(tmp_path / "run"), dataset, longer) == "finished"


def test_run_that_began_before_a_setting_existed_goes_on(tmp_path: Path, dataset: BoxDataset) -> None:
    take(tmp_path, dataset, SETTINGS)
    learned(tmp_path, 1)
    file = tmp_path / "run.json"
    facts = json.loads(file.read_text())
    del facts["settings"]["edges"]
    file.write_text(json.dumps(facts))
    assert runs.state_of(str(tmp_path), dataset, changed(resume=True)) == "begun"
    with pytest.raises(OutputError, match=r"other settings \(edges\)"):
        runs.state_of(str(tmp_path), dataset, changed(resume=True, edges="laplace"))


def test_new_run_removes_what_belongs_to_the_old_one_and_nothing_else(tmp_path: Path, dataset: BoxDataset) -> None:
    take(tmp_path, dataset, SETTINGS)
    learned(tmp_path, 2)
    for name in ("finished.json", "evaluation.json", "report.html", "notes.txt"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OutputError, match="a run is here already"):
        runs.state_of(str(tmp_path), dataset, SETTINGS)
    assert take(tmp_path, dataset, changed(overwrite=True)) == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "run.json"]


def test_run_that_finished_no_epoch_keeps_nobody_from_beginning_again(tmp_path: Path, dataset: BoxDataset) -> None:
    take(tmp_path, dataset, changed(weights="missing.pth"))
    for wish in (SETTINGS, changed(resume=True)):
        assert take(tmp_path, dataset, wish) == "new"


def test_weights_of_a_relative_path_are_named_so_that_workers_find_them(
    tmp_path: Path, made_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    monkeypatch.setattr(train, "_train", lambda dataset, out, settings, *rest: named.append(settings.weights) or {})
    monkeypatch.chdir(tmp_path)
    train.run(str(made_boxes), out="run", settings=TrainSettings(weights="b0.safetensors"))
    assert named == [str(tmp_path / "b0.safetensors")]


def test_resume_beats_an_overwrite_that_stands_in_a_settings_file(tmp_path: Path, dataset: BoxDataset) -> None:
    take(tmp_path, dataset, SETTINGS)
    learned(tmp_path, 3)
    assert runs.state_of(str(tmp_path), dataset, changed(resume=True, overwrite=True)) == "begun"


def test_run_whose_last_checkpoint_is_gone_is_not_begun_again_unasked(tmp_path: Path, dataset: BoxDataset) -> None:
    take(tmp_path, dataset, SETTINGS)
    learned(tmp_path, 3)
    (tmp_path / "checkpoints/last/checkpoint.json").unlink()
    with pytest.raises(OutputError, match=r"checkpoints/last: the checkpoint that this run .* --overwrite instead of --resume"):
        runs.state_of(str(tmp_path), dataset, changed(resume=True))
    assert runs.state_of(str(tmp_path), dataset, changed(overwrite=True)) == "new"
    (tmp_path / "finished.json").write_text("{}")
    assert runs.state_of(str(tmp_path), dataset, changed(resume=True)) == "finished", "that one does not go on"
    with pytest.raises(OutputError, match="is gone"):
        runs.state_of(str(tmp_path), dataset, changed(resume=True, max_epochs=9))


@pytest.mark.parametrize("left", ["finished.json", "checkpoints/best/checkpoint.json"])
def test_model_without_its_figures_is_not_taken_for_nothing(tmp_path: Path, dataset: BoxDataset, left: str) -> None:
    take(tmp_path, dataset, SETTINGS)
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("{}")
    with pytest.raises(OutputError, match="a run is here already"):
        runs.state_of(str(tmp_path), dataset, SETTINGS)


@pytest.mark.parametrize("text", ["epoch\nx\n", "epoch,val_loss\n1\n"])
def test_damaged_figures_are_named_and_can_be_overwritten(tmp_path: Path, dataset: BoxDataset, text: str) -> None:
    take(tmp_path, dataset, SETTINGS)
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(OutputError, match=r"metrics\.csv: damaged .* --overwrite instead"):
        runs.state_of(str(tmp_path), dataset, changed(resume=True))
    assert runs.state_of(str(tmp_path), dataset, changed(overwrite=True)) == "new"


def test_what_was_said_of_a_model_goes_when_it_learns_on(tmp_path: Path, dataset: BoxDataset) -> None:
    take(tmp_path, dataset, SETTINGS)
    learned(tmp_path, 2)
    names = ("champion.json", "learning_curve.json", "learning_curve.png")
    for name in names:
        (tmp_path / name).write_text("{}")
    take(tmp_path, dataset, changed(resume=True))
    assert [name for name in names if (tmp_path / name).exists()] == list(names[1:]), "with the same epochs the curve still holds"
    take(tmp_path, dataset, changed(resume=True, max_epochs=5))
    assert not any((tmp_path / name).exists() for name in names)


def test_word_that_cannot_be_left_or_read_now_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, *_: Any) -> Any:
        raise OutputError(f"{uri}: the store does not answer")

    learned(tmp_path, 1)
    learner: Any = SimpleNamespace(judged=None, state=dict, progression=Progression())
    recorder = runs.Recorder(str(tmp_path), SETTINGS, learner, None, None)  # type: ignore[arg-type]
    follower = runs.Follower(str(tmp_path), SETTINGS, None)  # type: ignore[arg-type]
    monkeypatch.setattr(runs, "POLL_S", -1.0)
    monkeypatch.setattr(runs.storage, "write_whole", refuse)
    monkeypatch.setattr(runs.storage, "exists", refuse)
    recorder.on_step(0, 1, 5)
    follower.tell()


def test_champion_is_not_replaced_by_the_run_that_is_to_be_held_against_it(
    tmp_path: Path, made_boxes: Path, dataset: BoxDataset
) -> None:
    out = tmp_path / "run"
    settings = changed(champion=str(out / "checkpoints/best"), overwrite=True, num_workers=0)
    take(out, dataset, settings)
    learned(out, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.champion, "check", lambda *_: None)
        with pytest.raises(UsageError, match=r"--champion .*Give another --out"):
            train.run(str(made_boxes), out=str(out), settings=settings)
    assert (out / "metrics.csv").exists()


def test_word_of_an_earlier_failure_does_not_take_the_folder(tmp_path: Path, dataset: BoxDataset) -> None:
    (tmp_path / "result.json").write_text("{}")
    assert runs.state_of(str(tmp_path), dataset, SETTINGS) == "new"
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other things"):
        runs.state_of(str(tmp_path), dataset, changed(overwrite=True))


def test_dry_run_says_that_the_folder_is_taken(tmp_path: Path, made_boxes: Path, dataset: BoxDataset) -> None:
    take(tmp_path, dataset, SETTINGS)
    learned(tmp_path, 1)
    with pytest.raises(OutputError, match="--resume"):
        train.run(str(made_boxes), out=str(tmp_path), settings=SETTINGS, dry_run=True)


def test_summary_says_why_training_ended_which_epoch_was_best_and_how_to_go_on(tmp_path: Path) -> None:
    losses = (0.5, 0.3, 0.4, 0.4)
    rows = [
        asdict(EpochResult(i, 1.0, loss, 0.5, 0.1, 1e-3, 3.0, 0, 10.0, 4.0, i < 2)) | {"is_best": int(i < 2)}
        for i, loss in enumerate(losses)
    ]
    (tmp_path / "metrics.csv").write_bytes(csv_bytes(rows, list(rows[0])))
    early = runs.summary_of(str(tmp_path), changed(max_epochs=9, patience=2))
    assert early["best_epoch"] == 2 and early["ended"] == (
        "after epoch 4 of 9: for 2 epochs the validation loss was not below that of epoch 2, which is kept as the best; "
        "to go on: --resume --patience 4"
    )
    assert runs.summary_of(str(tmp_path), changed(max_epochs=4))["ended"] == "all 4 epochs done; for more: --resume --max-epochs 8"


def test_wishes_that_cannot_come_true_are_refused(tmp_path: Path, made_boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="finds no GPU"):
        train.run(str(made_boxes), out=str(tmp_path / "run"), settings=changed(use_gpu=True))
    with pytest.raises(InputError, match=r"found pairs in the split 'train', training needs 200 "):
        train.run(str(made_boxes), out=str(tmp_path / "run"), settings=changed(num_workers=100, batch_size=200))
    assert list(tmp_path.iterdir()) == []


def test_epoch_that_a_kill_cut_short_comes_again_and_its_row_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(uri: str, *_: Any) -> None:
        if uri.endswith("last"):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save)
    learner: Any = SimpleNamespace(judged=None, state=dict, progression=Progression())
    info = checkpoint.CheckpointInfo(
        architecture=Architecture(image_side=64),
        mean=MEAN,
        std=STD,
        prior_margins=(0, 0, 0, 0),
        baselines={},
        epoch=-1,
        metrics={},
    )
    result = EpochResult(0, 1.0, 2.0, 0.5, 0.1, 1e-3, 3.0, 0, 10.0, 4.0, True)
    with pytest.raises(KeyboardInterrupt):
        runs.Recorder(str(tmp_path), SETTINGS, learner, info, None).on_epoch(result)
    assert [row["epoch"] for row in runs.read_metrics(str(tmp_path))] == [0], "what the last checkpoint holds has its row"
    with pytest.raises(KeyboardInterrupt):
        runs.Recorder(str(tmp_path), SETTINGS, learner, info, None).on_epoch(result)
    assert [row["epoch"] for row in runs.read_metrics(str(tmp_path))] == [0], "and it has it once"


@pytest.mark.long
@pytest.mark.parametrize(
    ("without", "which"), [(None, "pictures kept aside"), ("calib", "validation pictures, which chose the best epoch,")]
)
def test_every_training_says_what_was_learned_and_how_each_edge_follows(
    made_boxes: Path, tmp_path: Path, without: str | None, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cropreg.dataset.read_labels
    monkeypatch.setattr("cropreg.dataset.read_labels", lambda data, name, *a: read(data, "none" if name == without else name, *a))
    summary = train.run(str(made_boxes), out=str(tmp_path / "run"), settings=changed(max_epochs=1, refine=False, use_gpu=False))
    assert which in summary["learned"] and "skill" in summary["learned"]
    assert all(f"{edge} " in summary["edges"] for edge in ("left", "top", "right", "bottom"))
