"""Settings: checked at birth, and a wrong one is named together with what was probably meant."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from cropreg.errors import UsageError
from cropreg.settings import (
    PRESETS,
    VERBS,
    DoorSettings,
    EvaluateSettings,
    ExportSettings,
    MatchSettings,
    PredictSettings,
    ReviewSettings,
    Settings,
    TrainSettings,
    check,
    read_yaml,
)

MODELS = dict(
    zip(VERBS, (MatchSettings, TrainSettings, EvaluateSettings, PredictSettings, ExportSettings, ReviewSettings), strict=True)
)


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path: Path, verb: str = "train") -> str:
    """The message with which the file is refused, without its path, which must stand first."""
    with pytest.raises(UsageError) as caught:
        read_yaml(path, verb, MODELS[verb])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}: ")
    return "\n".join(line.removeprefix(f"{path}: ") for line in lines)


def test_file_gives_what_it_sets_and_nothing_else(write):
    assert read_yaml(write("batch_size: 64\nflip: both\n"), "train", TrainSettings) == {"batch_size": 64, "flip": "both"}


def test_training_is_balanced_unless_another_preset_is_asked_for():
    assert TrainSettings() == TrainSettings(**PRESETS["balanced"])


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_sets_what_nothing_else_does(preset):
    settings = TrainSettings(preset=preset, patience=99, seed=3)
    assert settings == TrainSettings(**{**PRESETS[preset], "patience": 99, "seed": 3, "preset": preset})
    assert TrainSettings(**settings.model_dump()) == settings, "what a run keeps gives the same settings again"


def test_preset_of_a_file_yields_to_what_stands_beside_it(write):
    values = read_yaml(write("preset: fast\nimage_side: 160\n"), "train", TrainSettings)
    settings = TrainSettings(**values)
    assert (settings.image_side, settings.max_epochs) == (160, PRESETS["fast"]["max_epochs"])


def test_preset_nobody_knows_is_refused(write):
    assert "'fast', 'balanced' or 'best'" in refusal(write("preset: quick"))


def test_file_may_spell_settings_like_flags(write):
    assert read_yaml(write("batch-size: 64"), "train", TrainSettings) == {"batch_size": 64}


@pytest.mark.parametrize("key", ["export", "export_"])
def test_file_may_leave_out_the_underscore_behind_a_word(write, key):
    assert read_yaml(write(f"predict: {{{key}: xmp}}"), "predict", PredictSettings) == {"export_": "xmp"}


def test_setting_beside_the_verbs_that_is_called_like_one_is_refused(write):
    expected = "below 'export' must stand settings as 'name: value', got str."
    assert refusal(write("export: xmp"), "predict") == expected


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "train:\n", "match: {split: 100/0/0/0}\n"])
def test_file_sets_nothing_when_it_says_nothing_of_the_verb(write, text):
    assert read_yaml(write(text), "train", TrainSettings) == {}


def test_one_file_serves_every_verb_when_each_has_its_section(write):
    path = write(
        "match: {proxy_long_px: 256}\ntrain: {seed: 3}\nevaluate: {seed: 4}\npredict: {quality: 90}\n"
        "export: {overwrite: true}\nreview: {port: 1}\n"
    )
    assert [read_yaml(path, verb, MODELS[verb]) for verb in VERBS] == [
        {"proxy_long_px": 256},
        {"seed": 3},
        {"seed": 4},
        {"quality": 90},
        {"overwrite": True},
        {"port": 1},
    ]


def test_unknown_setting_is_refused_with_the_nearest(write):
    assert refusal(write("batch_sise: 8")) == "unknown setting 'batch_sise'. Did you mean 'batch_size'?"


def test_unknown_setting_is_refused_without_a_guess_when_nothing_is_near(write):
    assert refusal(write("zzz: 8")) == "unknown setting 'zzz'."


def test_unknown_setting_is_refused_when_it_stands_in_a_section(write):
    assert refusal(write("train: {learning_rte: 0.1}")) == "unknown setting 'learning_rte'. Did you mean 'learning_rate'?"


def test_misspelt_verb_is_refused_with_the_nearest(write):
    expected = "'trian' stands beside a verb but is none. Did you mean 'train'? Put settings below a verb."
    assert refusal(write("match: {}\ntrian: {seed: 3}")) == expected


def test_setting_beside_a_section_is_refused(write):
    assert refusal(write("train: {}\nseed: 3")) == "'seed' stands beside a verb but is none. Put settings below a verb."


def test_every_wrong_value_is_named_with_what_was_given(write):
    lines = refusal(write("batch_size: many\nflip: sideways\ndropout: 1.5")).splitlines()
    assert len(lines) == 3
    text = "\n".join(lines)
    assert "batch_size: must be a whole number (got 'many')." in text
    assert "flip: must be 'none', 'horizontal', 'vertical' or 'both' (got 'sideways')." in text
    assert "dropout: must be less than 1 (got 1.5)." in text


@pytest.mark.parametrize(
    ("text", "kind"),
    [("- a\n- b\n", "list"), ("just words", "str"), ("42", "int"), ("train: [1, 2]", "list"), ("train: false", "bool")],
)
def test_file_that_is_no_mapping_is_refused_with_what_it_is(write, text, kind):
    assert refusal(write(text)).endswith(f"settings as 'name: value', got {kind}.")


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch pwned']",
        "seed: !!python/name:os.system",
        "seed: [1, 2",
        "a: b: c",
        "seed: 2024-13-45",
        b"seed: \xff\xfe",
        b"seed: \x00",
    ],
)
def test_file_that_is_no_plain_yaml_is_refused_and_runs_nothing(write, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(write(text)).startswith("cannot be read as YAML: ")
    assert not (tmp_path / "pwned").exists()


def test_file_larger_than_a_mebibyte_is_refused_unread(write):
    assert refusal(write("# " + "x" * 2**20)) == "larger than 1 MiB, so it is no file of settings."


def test_file_that_is_not_there_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.yaml")


def test_numbers_with_an_exponent_are_numbers(write):
    assert read_yaml(write("learning_rate: 1e-3"), "train", TrainSettings) == {"learning_rate": 0.001}  # a string in YAML 1.1


def test_bare_off_is_a_word_when_the_setting_wants_it(write):
    assert read_yaml(write("amp: off"), "train", TrainSettings) == {"amp": "off"}  # false in YAML 1.1


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("pad: 0.02\nmin_size: 800\nmax_trim: [0.1, 0.2, 0, 0]", {"pad": "0.02", "min_size": "800", "max_trim": "0.1,0.2,0,0"}),
        ("aspect: '3:2,4:3'\nmin-size: 1200x800", {"aspect": "3:2,4:3", "min_size": "1200x800"}),
    ],
)
def test_constraints_may_be_numbers_or_text(write, text, values):
    assert read_yaml(write(text), "predict", PredictSettings) == values


def test_bare_aspect_which_yaml_takes_for_minutes_and_seconds_is_refused_with_the_cure(write):
    assert "put an aspect in quotes in YAML: aspect: '3:2' (got 182)" in refusal(write("aspect: 3:2"), "predict")


@pytest.mark.parametrize("verb", VERBS)
def test_every_default_is_a_value_that_the_file_may_set(verb):
    model = MODELS[verb]
    assert check(model().model_dump(), model, "here") == model()


@pytest.mark.parametrize("model", [*MODELS.values(), DoorSettings])
def test_every_setting_says_what_it_is(model):
    assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize("model", [*MODELS.values(), DoorSettings])
def test_settings_are_frozen_and_know_their_fields(model):
    settings = model()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, next(iter(model.model_fields)), 1)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model(no_such_setting=1)
    assert isinstance(settings, Settings)


def test_no_setting_has_the_name_of_a_verb():
    assert not set(VERBS) & {name for model in MODELS.values() for name in model.model_fields}, (
        "read_yaml could not tell them apart"
    )


def test_splits_that_can_be_judged_are_those_that_are_made():
    from cropreg.schema import SPLITS

    assert get_args(EvaluateSettings.model_fields["split"].annotation) == (*SPLITS, "all")


def test_config_that_is_not_there_is_refused_at_birth(tmp_path):
    with pytest.raises(ValidationError, match=r"none\.yaml is not there"):
        DoorSettings(config=tmp_path / "none.yaml")
