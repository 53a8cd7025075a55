"""Configurations: what is written is what is read, and every mistake is named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from distill.config import config_to_dict, load_config, parse_command_line, save_config
from distill.errors import ConfigError


class Ensemble(Enum):
    NVE = "nve"
    NVT = "nvt"


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    clip: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True)
class Training:
    steps: int = 1000
    optimizer: Optimizer = field(default_factory=Optimizer)
    weights: tuple[float, ...] = (1.0, 10.0)
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"training.steps must not be negative, got {self.steps}")


@dataclass(frozen=True)
class Stage:
    temperature: float = 300.0


@dataclass(frozen=True)
class Run:
    name: str = "run"
    seed: int | str = 0
    training: Training = field(default_factory=Training)
    output: Path = Path("runs")
    resume: Path | None = None
    refine: Training | None = None
    ensemble: Ensemble = Ensemble.NVT
    box: tuple[int, int, int] = (1, 1, 1)
    stages: list[Stage] = field(default_factory=list)
    reference: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Required:
    teacher: str
    seed: int = 0


FULL = Run(
    name="1e-3",  # a string that looks like a number
    training=Training(7, Optimizer(3e-4, 1.0, "constant"), (0.5,), shuffle=False),
    output=Path("/somewhere/else"),
    resume=Path("a: b #c"),
    refine=Training(steps=0),
    ensemble=Ensemble.NVE,
    box=(2, 3, 4),
    stages=[Stage(), Stage(1e10)],
    reference={"H": -13.6, "O": float("inf")},
)


GROUP = "a group with the keys steps, optimizer, weights, shuffle"


@pytest.fixture
def run_yaml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_without_a_file() -> None:
    assert load_config(Run) == Run()


def test_file_gives_only_what_differs(run_yaml: Any) -> None:
    path = run_yaml(
        """
        name: water
        training:
          optimizer: {learning_rate: 1e-4}
          weights: [1, 2, 3]
        refine: {steps: 5}
        stages: [{temperature: 400}, {}]
        ensemble: NVE
        """
    )
    config = load_config(Run, path)
    assert config == Run(
        name="water",
        training=Training(optimizer=Optimizer(learning_rate=1e-4), weights=(1.0, 2.0, 3.0)),
        refine=Training(steps=5),
        stages=[Stage(400.0), Stage()],
        ensemble=Ensemble.NVE,
    )
    assert type(config.training.optimizer.learning_rate) is float
    assert type(config.training.weights[0]) is float
    assert type(config.training.weights) is tuple


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_empty_file_means_the_defaults(run_yaml: Any, text: str) -> None:
    assert load_config(Run, run_yaml(text)) == Run()


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "0.001", ".001"])
def test_floats_in_every_usual_form(run_yaml: Any, number: str) -> None:
    path = run_yaml(f"training: {{optimizer: {{learning_rate: {number}}}}}")
    from_file = load_config(Run, path)
    from_override = load_config(Run, overrides=[f"training.optimizer.learning_rate={number}"])
    assert from_file.training.optimizer.learning_rate == 1e-3
    assert from_override == from_file


def test_overrides_win_and_the_last_one_counts(run_yaml: Any) -> None:
    config = load_config(
        Run,
        run_yaml("training: {steps: 1, weights: [1]}\nresume: here"),
        [
            "training.steps=2",
            "training.steps=3",
            "training.weights=[4, 5]",
            "box=[1,2,3]",
            "resume=null",
            "name=a=b",
            "training.optimizer={clip: 2, schedule: constant}",
            "reference.H=-1",
            "reference.O=-2",
            "seed=new",
            "refine.steps=1e5",
            "training.shuffle=false",
        ],
    )
    assert config.training.steps == 3
    assert config.training.weights == (4.0, 5.0)
    assert config.box == (1, 2, 3)
    assert config.resume is None
    assert config.name == "a=b"
    assert config.training.optimizer == Optimizer(clip=2.0, schedule="constant")
    assert config.reference == {"H": -1.0, "O": -2.0}
    assert config.seed == "new"
    assert config.refine == Training(steps=100_000)
    assert type(config.refine.steps) is int
    assert config.training.shuffle is False


def test_result_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(Run).training.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "wrong", "near"),
    [
        ("nmae: x", "nmae", "name"),
        ("training: {optimizer: {learning_rat: 1}}", "training.optimizer.learning_rat",
         "training.optimizer.learning_rate"),
        ("refine: {step: 1}", "refine.step", "refine.steps"),
        ("stages: [{}, {temprature: 1}]", "stages[1].temprature", "stages[1].temperature"),
    ],
)  # fmt: skip
def test_unknown_key_in_a_file(run_yaml: Any, text: str, wrong: str, near: str) -> None:
    path = run_yaml(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path)
    message = str(caught.value)
    assert str(path) in message
    assert f"unknown key {wrong};" in message
    assert f"did you mean {near}?" in message


def test_unknown_key_in_an_override() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, overrides=["training.optimiser.clip=1"])
    assert "override 'training.optimiser.clip=1'" in str(caught.value)
    assert "did you mean training.optimizer?" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "value", "expected"),
    [
        ("training.steps=2.5", "training.steps", "2.5", "int"),
        ("training.steps=many", "training.steps", "'many'", "int"),
        ("training.steps=true", "training.steps", "True", "int"),
        ("training.steps=null", "training.steps", "None", "int"),
        ("name=2024", "name", "2024", "str"),
        ("seed=1.5", "seed", "1.5", "int or str"),
        ("refine=3", "refine", "3", f"{GROUP} or null"),
        ("refine.steps=x", "refine.steps", "'x'", "int"),
        ("training.steps=", "training.steps", "''", "int"),
        ("training.steps=[1]", "training.steps", "[1]", "int"),
        ("training.steps={a: 1}", "training.steps", "{'a': 1}", "int"),
        ("training.optimizer.learning_rate=fast", "training.optimizer.learning_rate",
         "'fast'", "float"),
        ("training.optimizer.learning_rate=true", "training.optimizer.learning_rate",
         "True", "float"),
        ("training.optimizer.clip=x", "training.optimizer.clip", "'x'", "float or null"),
        ("training.optimizer.schedule=cosin", "training.optimizer.schedule", "'cosin'",
         "one of 'cosine', 'constant'"),
        ("training.shuffle=perhaps", "training.shuffle", "'perhaps'", "bool"),
        ("training.weights=3", "training.weights", "3", "tuple[float, ...]"),
        ("training.weights=[1, x]", "training.weights[1]", "'x'", "float"),
        ("training=3", "training", "3", GROUP),
        ("training=null", "training", "None", GROUP),
        ("training.steps.more=3", "training.steps", "{'more': 3}", "int"),
        ("box=[1, 2]", "box", "[1, 2]", "tuple[int, int, int]"),
        ("box=[1, 2, 3, 4]", "box", "[1, 2, 3, 4]", "tuple[int, int, int]"),
        ("ensemble=NPT", "ensemble", "'NPT'", "one of NVE, NVT"),
        ("reference.H=x", "reference.H", "'x'", "float"),
        ("stages=[{temperature: hot}]", "stages[0].temperature", "'hot'", "float"),
        ("output=[a]", "output", "['a']", "Path"),
    ],
)  # fmt: skip
def test_wrong_type(override: str, key: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, overrides=[override])
    message = str(caught.value)
    assert f"override {override!r}" in message
    assert f": {key} must be {expected}, not {value}" in message


def test_wrong_type_in_a_file_names_the_file(run_yaml: Any) -> None:
    path = run_yaml("training: {steps: soon}")
    with pytest.raises(ConfigError) as caught:
        load_config(Run, path)
    assert str(caught.value) == f"{path}: training.steps must be int, not 'soon'"


@pytest.mark.parametrize(
    "override", ["training.steps", "=3", "training..steps=3", "a b=3", ".=1", ""]
)
def test_malformed_override(override: str) -> None:
    with pytest.raises(ConfigError, match="must have the form key=value"):
        load_config(Run, overrides=[override])


def test_override_with_broken_yaml() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(Run, overrides=["training.weights=[1, 2"])


def test_hopeless_key_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Run, overrides=["training.xyzzy=1"])
    assert "did you mean" not in str(caught.value)
    assert "valid here: steps, optimizer, weights, shuffle" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_config(Run, tmp_path / "absent.yaml")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Run, tmp_path)


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00name: x")
    with pytest.raises(ConfigError):
        load_config(Run, tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "`key: value` lines"),
        ("just words", "`key: value` lines"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b", "'name' occurs twice"),
    ],
)
def test_malformed_file(run_yaml: Any, text: str, message: str) -> None:
    path = run_yaml(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Run, path)
    assert str(path) in str(caught.value)


def test_field_without_a_default_must_be_given() -> None:
    assert load_config(Required, overrides=["teacher=ani"]) == Required("ani")
    with pytest.raises(ConfigError, match="teacher has no default"):
        load_config(Required, overrides=["seed=3"])


def test_checks_see_only_the_final_state() -> None:
    config = load_config(Run, overrides=["training.steps=-1", "training.steps=1"])
    assert config.training.steps == 1


def test_field_of_an_unsupported_type_is_the_programmers_mistake() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex = 0j

    with pytest.raises(TypeError, match="complex"):
        load_config(Odd, overrides=["value=1"])


def test_own_checks_of_a_config_become_config_errors() -> None:
    with pytest.raises(ConfigError, match=r"training\.steps must not be negative, got -1"):
        load_config(Run, overrides=["training.steps=-1"])


@pytest.mark.parametrize("config", [Run(), FULL], ids=["defaults", "everything set"])
def test_saved_config_is_read_back_equal(tmp_path: Path, config: Run) -> None:
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_config(Run, path) == config
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_saved_config_is_plain_yaml_with_every_field(tmp_path: Path) -> None:
    save_config(FULL, tmp_path / "config.yaml")
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert list(plain) == [item.name for item in dataclasses.fields(Run)]
    assert plain["output"] == "/somewhere/else"
    assert plain["training"]["optimizer"]["learning_rate"] == 3e-4


def test_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    save_config(Run(), path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_config(FULL, path)
    assert load_config(Run, path) == Run()
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_config_to_dict_holds_nothing_but_plain_values() -> None:
    plain = config_to_dict(FULL)
    assert plain["ensemble"] == "NVE"
    assert plain["box"] == [2, 3, 4]
    assert plain["stages"] == [{"temperature": 300.0}, {"temperature": 1e10}]
    assert plain["refine"]["optimizer"]["clip"] is None
    yaml.safe_dump(plain)


def test_command_line(run_yaml: Any) -> None:
    default = run_yaml("name: from the file")
    config, namespace = parse_command_line(Run, default, [])
    assert (config.name, namespace.smoke, namespace.config) == ("from the file", False, default)

    config, namespace = parse_command_line(
        Run,
        default,
        ["training.steps=5", "--smoke", "training.optimizer.clip=1"],
        smoke_overrides=["training.steps=2", "name=smoke"],
    )
    assert namespace.smoke
    assert config == Run(name="smoke", training=Training(5, Optimizer(clip=1.0)))


def test_command_line_with_another_file(run_yaml: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("name: other")
    config, _ = parse_command_line(Run, run_yaml("name: x"), ["--config", str(other)])
    assert config.name == "other"
    assert parse_command_line(Run, None, [])[0] == Run()


def test_command_line_reports_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command_line(Run, None, ["training.stepps=5"])
    assert caught.value.code == 2
    assert "did you mean training.steps?" in capsys.readouterr().err


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(Run, None, ["--help"], description="Train it.")
    output = capsys.readouterr().out
    assert "Train it." in output
    assert "training.optimizer.learning_rate" in output
