"""Recipes' configurations: they survive the checkpoint, and every mistake in one is named in a sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.encoder import EncoderConfig
from asr.errors import ASRError
from asr.training.config import AugmentConfig, DataConfig, OptimizerConfig, TrainingConfig, differences, read_config

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/*.toml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@given(
    st.builds(
        TrainingConfig,
        name=st.text(),
        data=st.builds(DataConfig, train=st.lists(st.text()), passes=st.dictionaries(st.text(), st.floats(0, 9))),
        encoder=st.builds(EncoderConfig, width=st.integers(1, 2000), layer_norm=st.booleans()),
        augment=st.builds(AugmentConfig, noise_snr_db=st.tuples(st.floats(-9, 0), st.floats(0, 9))),
        optimizer=st.builds(OptimizerConfig, steps=st.integers(1), peak_rate=st.floats(1e-9, 1)),
    )
)
def test_a_configuration_survives_its_dictionary(config: TrainingConfig) -> None:
    assert TrainingConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_is_valid(recipe: Path) -> None:
    config = read_config(recipe)
    assert config.data.train or recipe.stem == "finetune"  # which learns from what --data names
    assert config.data.dev or recipe.parent.name == "finetune"  # where there is little to spare


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "")) == TrainingConfig()


def test_whole_numbers_serve_where_numbers_are_wanted(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, "[optimizer]\npeak_rate = 1\n[data.passes]\nfsdd = 0"))
    assert (config.optimizer.peak_rate, config.data.passes) == (1.0, {"fsdd": 0.0})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('name="other"', TrainingConfig(name="other")),
        ("encoder.width=7", TrainingConfig(encoder=EncoderConfig(width=7))),
        (" encoder.width = 7 ", TrainingConfig(encoder=EncoderConfig(width=7))),
        ('data.train=["a=b", "c"]', TrainingConfig(data=DataConfig(train=["a=b", "c"]))),
        ("data.passes.common-voice=0.5", TrainingConfig(data=DataConfig(passes={"common-voice": 0.5}))),
        ("augment.noise_snr_db=[1, 2]", TrainingConfig(augment=AugmentConfig(noise_snr_db=(1.0, 2.0)))),
    ],
)
def test_a_change_overrides_the_file(tmp_path: Path, change: str, expected: TrainingConfig) -> None:
    assert read_config(written(tmp_path, ""), [change]) == expected
    assert read_config(written(tmp_path, "[encoder]\nlayers = 9"), [change]).encoder.layers == 9


def test_the_last_of_several_changes_counts(tmp_path: Path) -> None:
    recipe = written(tmp_path, "[encoder]\nwidth = 5")
    assert read_config(recipe, ["encoder.width=6", "encoder.layers=2", "encoder.width=7"]).encoder == EncoderConfig(
        width=7, layers=2
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[encodr]\nwidth = 1", "section [encodr] is unknown; choose from augment, data, encoder, features, optimizer"),
        ("[encoder]\nwide = 1", "[encoder] does not know 'wide'; it knows auxiliary, cell"),
        ("encoder = 5", "encoder is 5; it must be a section, headed [encoder]"),
        ("name = 5", "name is 5; it must be text"),
        ('[encoder]\nwidth = "wide"', "encoder.width is 'wide'; it must be a whole number"),
        ("[encoder]\nwidth = 1.5", "encoder.width is 1.5; it must be a whole number"),
        ("[encoder]\nwidth = true", "encoder.width is True; it must be a whole number"),
        ("[encoder]\nwidth = 0", "encoder.width is 0; it must be 1 or more"),
        ("[encoder]\ndropout = 1.0", "encoder.dropout is 1.0; it must be at least 0 and below 1"),
        ("[encoder]\nlayer_norm = 1", "encoder.layer_norm is 1; it must be true or false"),
        ("[encoder]\nn_mels = 40", "encoder.n_mels is 40; it must be features.n_mels, which is 80"),
        ('[encoder]\ncell = "tape"', "encoder cell 'tape' is unknown; choose one of lstm, gru, rnn"),
        ('[optimizer]\npeak_rate = "fast"', "optimizer.peak_rate is 'fast'; it must be a number"),
        ("[optimizer]\npeak_rate = nan", "optimizer.peak_rate is nan; it must be a number"),
        ("[optimizer]\nsteps = 0", "optimizer.steps is 0; it must be 1 or more"),
        ("[optimizer]\naverage = 1.0", "optimizer.average is 1.0; it must be at least 0 and below 1"),
        ('[data]\ntrain = "train.tsv"', "data.train is 'train.tsv'; it must be a list of texts"),
        ("[data]\ntrain = [1]", "data.train is [1]; it must be a list of texts"),
        ("[data.passes]\nfsdd = -1", "data.passes.fsdd is -1.0; it must be 0 or more"),
        ('[data.passes]\nfsdd = "few"', "data.passes is {'fsdd': 'few'}; it must be a table of numbers"),
        ('[data]\nunit = "words"', "data.unit is 'words'; it must be auto or characters or pieces or phones"),
        ("[data]\nbatch_seconds = 9", "data.batch_seconds is 9.0; it must be at least data.max_seconds (17)"),
        ("[data]\nmax_seconds = 0.1", "data.max_seconds is 0.1; it must be above data.min_seconds"),
        ("[augment]\nnoise = 2", "augment.noise is 2.0; it must be from 0 to 1"),
        ("[augment]\nspeed = 1", "augment.speed is 1.0; it must be from 0 to 0.5"),
        ("[augment]\ntime_masks = -1", "augment.time_masks is -1; it must be 0 or more"),
        ("[augment]\nnoise_snr_db = [1, 2, 3]", "augment.noise_snr_db is [1, 2, 3]; it must be a list of two numbers"),
        ("[augment]\nnoise_snr_db = [2, 1]", "augment.noise_snr_db is [2.0, 1.0]; it must be the lower ratio and"),
        ("[features]\nhop = 0", "features need 0 < hop <= window"),
        ("this is no TOML", "recipe.toml is not TOML: "),
    ],
)
def test_a_mistake_is_one_clear_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ASRError) as caught:
        read_config(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder.width", "cannot read the change 'encoder.width'; write section.name=value"),
        ("data.unit=pieces", "cannot read the change 'data.unit=pieces'; write section.name=value with a TOML value"),
        ("encoder.width.more=1", "cannot make the change 'encoder.width.more=1': width is a value and holds no names"),
        ("encoder.wide=1", "[encoder] does not know 'wide'"),
        ("width=1", "configuration section [width] is unknown"),
        ("=1", "configuration section [] is unknown"),
    ],
)
def test_a_mistaken_change_is_one_clear_sentence(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ASRError) as caught:
        read_config(written(tmp_path, "[encoder]\nwidth = 5"), [change])
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ASRError, match=r"there is no configuration .*missing.toml; recipes/ holds"):
        read_config(tmp_path / "missing.toml")
    with pytest.raises(ASRError, match=r"cannot read the configuration .*: Is a directory"):
        read_config(tmp_path)
    (tmp_path / "recording.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ASRError, match=r"recording\.toml is not TOML"):
        read_config(tmp_path / "recording.toml")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (TrainingConfig(), {}),
        (TrainingConfig(name="other"), {"name": ("model", "other")}),
        (TrainingConfig(encoder=EncoderConfig(width=7)), {"encoder.width": (384, 7)}),
        (
            replace(TrainingConfig(), data=DataConfig(dev=["a"]), optimizer=OptimizerConfig(seed=2)),
            {"data.dev": ([], ["a"]), "optimizer.seed": (1, 2)},
        ),
    ],
)
def test_differences_are_named_with_both_values(other: TrainingConfig, expected: dict[str, Any]) -> None:
    assert differences(TrainingConfig(), other) == expected
