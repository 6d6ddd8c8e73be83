from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import densekit
from densekit.config import (
    MAX_BYTES,
    Config,
    config_hash,
    list_configs,
    load_config,
    parse_config,
    schema_json,
)
from densekit.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"

SR = """\
task: sr
model:
  name: rdn
  scale: 2
data:
  train: pictures
train:
  total_steps: 1000
  crop_size: 32
"""

SEG = """\
task: seg
model: {name: fc_densenet103, num_classes: 2}
data:
  train: [a, b]
  classes: [background, cell]
train: {total_steps: 1000, crop_size: 224}
"""


def test_a_config_needs_only_what_has_no_default():
    config = parse_config(SR)

    assert config.model.name == "rdn"
    assert config.model.kwargs == {"scale": 2}
    assert config.data.train == ["pictures"]
    assert (config.optim.name, config.optim.learning_rate, config.train.seed) == ("adamw", 1e-3, 0)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.learning_rate=1e-4", 1e-4),
        ("optim.learning_rate=1.0e-4", 1e-4),
        ("optim.learning_rate='1e-4'", 1e-4),
        ("optim.learning_rate=1", 1.0),
        ("train.total_steps=1e4", 10_000),
        ("train.total_steps=1_000", 1000),
        ("train.total_steps=010", 8),
        ("train.total_steps=12:30:45", 45045),
        ("train.channels_last=no", False),
        ("train.channels_last=on", True),
        ("train.threads=~", None),
        ("train.threads=", None),
        ("train.initial_weights=a=b.safetensors", "a=b.safetensors"),
        ("data.licence='1.10'", "1.10"),
        ("data.train=[a, b]", ["a", "b"]),
        ("data.train=a", ["a"]),
        ("model.growth_rate=64", 64),
        ("model.residual_scale=1e-1", 0.1),
        ("model.block_config=[4, 5, 1e1]", [4, 5, 10.0]),
        ("model.memory=lean", "lean"),
        ("model.bias=no", False),
        ("model.weights=none", "none"),
        ("model.weights=null", None),
        ("model.code=__import__('os')", "__import__('os')"),
    ],
)
def test_an_override_is_read_as_the_file_would_be(override, value):
    key, _, written = override.partition("=")
    section, name = key.split(".")
    config = parse_config(SR, [override])
    found = config.model.kwargs[name] if section == "model" else getattr(getattr(config, section), name)

    assert found == value
    assert type(found) is type(value)
    file = {name: dict(values) if isinstance(values, dict) else values for name, values in yaml.safe_load(SR).items()}
    file.setdefault(section, {}).pop(name, None)
    lines = yaml.safe_dump(file, default_flow_style=False, sort_keys=False).replace(": {}", ":").splitlines()
    lines.insert(lines.index(f"{section}:") + 1, f"  {name}: {written}")
    assert parse_config("\n".join(lines)) == config


def test_the_last_of_two_overrides_of_a_key_counts():
    assert parse_config(SR, ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_an_override_mends_a_fault_of_the_file():
    assert parse_config(SR + "  batch_size: -4\n", ["train.batch_size=4"]).train.batch_size == 4


def test_a_config_made_in_python_is_checked_alike():
    values = json.loads(json.dumps(parse_config(SR).model_dump()))
    values["train"]["loss"] = "ce"

    with pytest.raises(ValidationError, match="task sr has no loss"):
        Config.model_validate(values)


def test_a_config_is_loaded_from_a_path(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(SR, encoding="utf-8")

    assert load_config(path) == load_config(str(path)) == parse_config(SR)
    assert load_config(path, ["train.seed=7"]).train.seed == 7
    path.write_text(SR.replace("32", "3"), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}:9: train.crop_size=3: must be 8 or more$"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"task: \xff\xfe", "cannot be read as a config: not UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes, so not a config"),
        (None, "cannot be read as a config: Is a directory"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "my.yaml"
    path.mkdir() if content is None else path.write_bytes(content)

    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}: {reason}')}$"):
        load_config(path)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package with two configs in its wheel."""
    for name in ("sr/rdn_tiny_x2", "seg/fc_densenet_nuclei"):
        path = tmp_path / "densekit" / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(SR if name.startswith("sr") else SEG, encoding="utf-8")
    monkeypatch.setattr(densekit, "__file__", str(tmp_path / "densekit" / "__init__.py"))
    return tmp_path


def test_shipped_configs_are_found_by_name_in_a_wheel_and_in_a_checkout(shipped):
    assert list_configs() == ["seg/fc_densenet_nuclei", "sr/rdn_tiny_x2"]
    assert load_config("sr/rdn_tiny_x2", ["train.seed=5"]).train.seed == 5

    (shipped / "densekit" / "configs").rename(shipped / "configs")
    assert list_configs() == ["seg/fc_densenet_nuclei", "sr/rdn_tiny_x2"]
    assert load_config("seg/fc_densenet_nuclei") == parse_config(SEG)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "sr/rdn_x5",
            "no config named 'sr/rdn_x5'; did you mean 'sr/rdn_tiny_x2'? "
            "(a path or one of: seg/fc_densenet_nuclei, sr/rdn_tiny_x2)",
        ),
        ("../sr/secret", "no config named '../sr/secret' (a path or one of: seg/fc_densenet_nuclei, sr/rdn_tiny_x2)"),
        ("mine.yaml", "mine.yaml: no such file (a path or one of: seg/fc_densenet_nuclei, sr/rdn_tiny_x2)"),
        ("a\nb.yml", "a\\nb.yml: no such file (a path or one of: seg/fc_densenet_nuclei, sr/rdn_tiny_x2)"),
    ],
)
def test_an_unknown_config_names_the_nearest_and_all(shipped, name, message):
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value) == message


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_config_is_valid_and_of_its_folders_task(path):
    config = load_config(path)

    assert config.task == path.parent.name
    assert load_config(f"{path.parent.name}/{path.stem}") == config
    assert parse_config(config.to_yaml()) == config


def test_the_schema_file_is_current():
    assert (CONFIGS / "schema.json").read_text("utf-8") == schema_json(), (
        "python -m densekit.config > configs/schema.json"
    )


def test_every_key_of_the_schema_says_what_it_means_and_every_number_is_bounded_below():
    sections = json.loads(schema_json())["$defs"]
    keys = [(f"{name}.{key}", value) for name in sections for key, value in sections[name]["properties"].items()]

    assert len(keys) > 30
    assert [key for key, value in keys if not value.get("description", "").endswith(".")] == []
    numbers = [
        (key, kind)
        for key, value in keys
        for kind in value.get("anyOf", [value])
        if kind.get("type") in ("integer", "number")
    ]
    assert [key for key, kind in numbers if not {"minimum", "exclusiveMinimum"} & set(kind)] == []


@pytest.mark.parametrize("text", [SR, SEG])
def test_a_config_comes_back_equal_from_its_own_yaml(text):
    config = parse_config(text, ["optim.learning_rate=3e-7", "data.licence='1e-4, no: [x]'"])

    again = parse_config(config.to_yaml())
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert again.to_yaml() == config.to_yaml()


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    licence=words,
    train=st.lists(words, min_size=1, max_size=3),
    rate=st.floats(0, 10, exclude_min=True),
    kwargs=st.dictionaries(words, scalars | words | st.lists(scalars | words, max_size=3), max_size=3),
)
def test_any_value_survives_the_way_through_yaml(licence, train, rate, kwargs):
    model = {"name": "rdn", **kwargs, "scale": 2}
    values = {
        "task": "sr",
        "model": model | {"name": "rdn"},
        "data": {"train": train, "licence": licence},
        "optim": {"learning_rate": rate},
        "train": {"total_steps": 5, "crop_size": 32},
    }
    config = Config.model_validate(values)

    assert parse_config(config.to_yaml()) == config


@settings(deadline=None, max_examples=150, derandomize=True)
@given(value=st.text(alphabet="ab:-[]{}#&*!|>'\"%@~=<,?0123456789.e_xo \n\x00\ud800é", max_size=30), key=words)
def test_no_override_raises_anything_but_a_config_error_of_printable_lines(value, key):
    for override in (f"train.seed={value}", f"model.x={value}", f"{key}={value}", value):
        try:
            parse_config(SR, [override])
        except ConfigError as error:
            lines = str(error).split("\n")
        else:
            lines = []
        assert all(line.isprintable() for line in lines)


def test_the_hash_is_of_the_values_not_of_the_writing():
    assert config_hash(parse_config(SR)) == config_hash(parse_config(f"# note\n{SR}optim: {{learning_rate: 0.001}}\n"))
    assert config_hash(parse_config(SR)) != config_hash(parse_config(SR, ["train.seed=1"]))
    assert re.fullmatch("[0-9a-f]{64}", config_hash(parse_config(SR)))


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        parse_config(SR).train.seed = 4


def test_reading_a_config_loads_no_torch():
    program = (
        "import sys, densekit.config as c; "
        f"c.parse_config({SR!r}); "
        "print([name for name in ('torch', 'numpy', 'cv2', 'PIL') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)

    assert run.stdout == "[]\n"


def test_the_module_prints_the_schema():
    run = subprocess.run([sys.executable, "-m", "densekit.config"], capture_output=True, text=True, check=True)

    assert run.stdout == schema_json()
