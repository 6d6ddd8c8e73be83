from __future__ import annotations

import pytest

from densekit import faults
from densekit.config import parse_config
from densekit.errors import ConfigError

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


def faults_of(text, overrides=(), source="my.yaml"):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, source=source)
    return str(caught.value).splitlines()


def override_fault(override, text=SR):
    (fault,) = faults_of(text, [override])
    return fault


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("train.batch_size=-4", "train.batch_size=-4: must be 1 or more"),
        ("train.num_step=4", "train.num_step: unknown key"),
        ("trian.seed=4", "trian: unknown key; did you mean 'train'?"),
        ("optim.learning_rte=4", "optim.learning_rte: unknown key; did you mean 'learning_rate'?"),
        ("train.learning_rate=4", "train.learning_rate: unknown key; did you mean 'optim.learning_rate'?"),
        ("batch_size=4", "batch_size: unknown key; did you mean 'train.batch_size'?"),
        ("task=sg", "task='sg': must be 'sr' or 'seg'; did you mean 'seg'?"),
        ("task=", "task=null: must be 'sr' or 'seg'"),
        (
            "optim.name=adamv",
            "optim.name='adamv': must be 'adam', 'adamw', 'muon', 'sgd' or 'rmsprop'; did you mean 'adam'?",
        ),
        ("optim.learning_rate=fast", "optim.learning_rate='fast': must be a number"),
        ("optim.learning_rate=[1]", "optim.learning_rate=[1]: must be a number"),
        ("optim.learning_rate=0", "optim.learning_rate=0: must be more than 0"),
        ("optim.learning_rate=10.5", "optim.learning_rate=10.5: must be 10 or less"),
        ("optim.learning_rate=nan", "optim.learning_rate='nan': must be a finite number"),
        ("optim.learning_rate=.nan", "optim.learning_rate=nan: must be a finite number"),
        ("optim.clip_norm=.inf", "optim.clip_norm=inf: must be a finite number"),
        ("optim.clip_norm=1e999", "optim.clip_norm='1e999': must be a finite number"),
        ("optim.clip_norm=none", "optim.clip_norm='none': must be a number; no value is written null"),
        (
            "optim.learning_rate=yes",
            "optim.learning_rate=true: must be a number; YAML reads yes, no, on and off as true or false",
        ),
        ("train.seed=no", "train.seed=false: must be a number; YAML reads yes, no, on and off as true or false"),
        ("train.seed=4294967296", "train.seed=4294967296: must be 4294967295 or less"),
        ("train.seed=1.5", "train.seed=1.5: must be a whole number"),
        ("train.seed=x", "train.seed='x': must be a whole number"),
        ("train.seed=2026-01-01", "train.seed=2026-01-01: must be a whole number"),
        ("train.seed='" + "9" * 5000 + "'", f"train.seed='{'9' * 56}...: must be a whole number of ordinary size"),
        ("train.ema_decay=1", "train.ema_decay=1: must be less than 1"),
        ("train.channels_last=maybe", "train.channels_last='maybe': must be true or false"),
        ("train.channels_last=", "train.channels_last=null: must be true or false"),
        ("train.initial_weights=4", "train.initial_weights=4: must be text; put it in quotes"),
        ("train.initial_weights=''", "train.initial_weights='': must not be empty"),
        ("data.licence=1.10", "data.licence=1.1: must be text; put it in quotes"),
        ("data.train=", "data.train: must be a list"),
        ("data.train=[]", "data.train: must have 1 or more entries, not 0"),
        ("data.train=[a, 3]", "data.train[1]=3: must be text; put it in quotes"),
        ("data.palette=[[1, 2, 3, 4]]", "data.palette[0]: must have 3 or fewer entries, not 4"),
        ("data.palette=[[1, 2, 256]]", "data.palette[0][2]=256: must be 255 or less"),
        ("data.shrink=[1, 2]", "data.shrink[1]=2: must be 1 or less"),
        ("train=fast", "train: must be a section of keys, not a single value"),
        ("model.scale=.nan", "model.scale=nan: must be a finite number"),
        (
            "model.blocks={a: 1}",
            "model.blocks={'a': 1}: must be a number, text, true, false, null or a list of them",
        ),
        (
            "model.day=2026-01-01",
            "model.day=2026-01-01: must be a number, text, true, false, null or a list of them",
        ),
        ("model.name.x=2", "model.name.x=2: model.name is a value, not a section of keys"),
        ("train.seed", "'train.seed': must be key=value, such as train.seed=1"),
        ("--seed=1", "'--seed=1': must be key=value, such as train.seed=1"),
        ("a..b=1", "'a..b=1': must be key=value, such as train.seed=1"),
        (
            "train.seed=!!int 3",
            "train.seed=!!int 3: tag 'tag:yaml.org,2002:int' is not allowed; write the plain value",
        ),
        (
            "train.seed=*x",
            "train.seed=*x: anchors and aliases (& and *) are not allowed; write the value out",
        ),
        ("data.licence==", "data.licence==: '=': not a value; put text in quotes"),
        ("data.train=\x1b[31m", "data.train=\\x1b[31m: not valid YAML: holds characters that text cannot hold"),
    ],
)
def test_a_faulty_override_says_what_is_wrong_on_one_line(override, fault):
    assert override_fault(override) == f"{fault} (command line)"


def test_a_fault_in_the_file_has_its_line():
    text = SR + "optim:\n  weight_decay: 0\n\n  # speed\n  learning_rte: 1e-4\n"

    assert faults_of(text, source="configs/sr/my.yaml") == [
        "configs/sr/my.yaml:14: optim.learning_rte: unknown key; did you mean 'learning_rate'?"
    ]


def test_all_faults_come_in_one_pass_in_the_order_of_the_file_and_then_the_command_line():
    text = """\
task: sr
model: {name: rdn, scale: 2}
data:
  train: [a, 3]
  val: 2026-02-30
train:
  total_steps: yes
  seed: 1
  seed: 2
  ema_decay: 1.5
optm: {}
"""
    assert faults_of(text, ["train.batch_size=-4", "nonsense"]) == [
        "my.yaml:4: data.train[1]=3: must be text; put it in quotes",
        "my.yaml:5: '2026-02-30': not a value; put text in quotes",
        "my.yaml:6: train.crop_size: missing, and it has no default",
        "my.yaml:7: train.total_steps=true: must be a number; YAML reads yes, no, on and off as true or false",
        "my.yaml:9: train.seed: given twice, first in line 8",
        "my.yaml:10: train.ema_decay=1.5: must be less than 1",
        "my.yaml:11: optm: unknown key; did you mean 'optim'?",
        "'nonsense': must be key=value, such as train.seed=1 (command line)",
        "train.batch_size=-4: must be 1 or more (command line)",
    ]


@pytest.mark.parametrize(
    ("text", "overrides", "fault"),
    [
        (SR.replace("  scale: 2\n", ""), [], "my.yaml:2: model.scale: missing; task sr needs the factor, such as 2"),
        (SR, ["model.scale=0"], "model.scale: must be a whole number from 1 to 8 (command line)"),
        (SR, ["model.scale=2.5"], "model.scale: must be a whole number from 1 to 8 (command line)"),
        (SR, ["model.scale=no"], "model.scale: must be a whole number from 1 to 8 (command line)"),
        (
            SR,
            ["data.masks=m"],
            "data.masks: belongs to task seg, but the task is sr; remove it (command line)",
        ),
        (
            SEG.replace("  classes", "  masks: m\n  classes"),
            [],
            "my.yaml:5: data.masks: has 1 folders, but data.train has 2; give one for each, or none",
        ),
        (SEG, ["data.shrink=[0.5]"], "data.shrink: belongs to task sr, but the task is seg; remove it (command line)"),
        (
            SEG,
            ["data.val_masks=[m]"],
            "data.val_masks: has 1 folders, but data.val has 0; give one for each, or none (command line)",
        ),
        (
            SEG,
            ["data.palette=[[0, 0, 0]]"],
            "data.palette: has 1 colours, but data.classes has 2 names (command line)",
        ),
        (
            SR,
            ["optim.warmup_steps=1000"],
            "optim.warmup_steps: must be less than train.total_steps (1000) (command line)",
        ),
        (
            SR,
            ["train.patience=3", "data.val=[]"],
            "train.patience: needs data.val or data.val_share, whose figures tell whether training gets better "
            "(command line)",
        ),
        (
            SR,
            ["optim.name=rmsprop", "optim.betas=[0.9, 0.99]"],
            "optim.betas: has 2 numbers, but optim.name=rmsprop takes 1 of them (command line)",
        ),
        (
            SR,
            ["optim.name=sgd", "optim.betas=[0.9]"],
            "optim.betas: has 1 numbers, but optim.name=sgd has none; remove it (command line)",
        ),
        (
            SR,
            ["optim.name=muon", "optim.eps=1e-6"],
            "optim.eps: is for adam, adamw and rmsprop; optim.name=muon has none, remove it (command line)",
        ),
        (
            SR,
            ["optim.min_learning_rate=0.1"],
            "optim.min_learning_rate: must not exceed optim.learning_rate (0.001) (command line)",
        ),
        (
            SR,
            ["train.loss=ce"],
            "train.loss: task sr has no loss 'ce'; use 'l1' or 'charbonnier' or 'luma' or 'fft' or 'perceptual' "
            "(command line)",
        ),
        (
            SEG,
            ["train.loss=l1"],
            "train.loss: task seg has no loss 'l1'; use 'ce' or 'bce' or 'focal' or 'bfocal' or 'ohem' or 'dice' or "
            "'jaccard' or 'tversky' or 'focal-tversky' or 'lovasz' (command line)",
        ),
        (
            SEG,
            ["train.loss=ce+0.5*dise"],
            "train.loss: task seg has no loss 'dise'; did you mean 'dice'? (command line)",
        ),
        (
            SEG,
            ["eval.protocol=rdn-y"],
            "eval.protocol: does not fit task seg; use 'camvid11-360x480' or 'voc21' or 'cityscapes19' or "
            "'dataset-iou' or 'binary' (command line)",
        ),
        (
            SR,
            ["gan.start_step=1000"],
            "gan.start_step: must be less than train.total_steps (1000), or gan never counts (command line)",
        ),
        (
            SR,
            ["gan.weight=0.1", "data.val=b", "train.patience=3"],
            "train.patience: cannot go with gan: PSNR falls while pictures look better; remove it (command line)",
        ),
        (SEG, ["gan.weight=0.1"], "gan: belongs to task sr, but the task is seg; remove it (command line)"),
        (SR, ["data.focus=balanced"], "data.focus: belongs to task seg, but the task is sr; remove it (command line)"),
        (
            SR,
            ["data.lr=[a, b]"],
            "data.lr: has 2 folders, but data.train has 1; give one for each, or none (command line)",
        ),
        (
            SR,
            ["data.lr=a", "data.degradation=real-esrgan"],
            "data.degradation: makes low resolution from data.train, but data.lr has it already; remove one "
            "(command line)",
        ),
        (
            SR,
            ["data.sharpen=true"],
            "data.sharpen: makes low resolution from sharpened pictures, which needs data.degradation=real-esrgan "
            "(command line)",
        ),
        (
            SEG,
            ["data.val=c", "data.val_share=0.2"],
            "data.val_share: takes validation pictures from data.train, but data.val has some; remove one "
            "(command line)",
        ),
        (
            SEG,
            ["data.augment=lihgt"],
            "data.augment='lihgt': must be 'none', 'light', 'strong' or 'microscopy'; did you mean 'light'? (command "
            "line)",
        ),
        (SEG, ["data.augment=3"], "data.augment=3: must be 'none', 'light', 'strong' or 'microscopy' (command line)"),
        (
            SEG,
            ["data.augment=[D4, {D4: 3, D5: 2}]"],
            "data.augment[1]={'D4': 3, 'D5': 2}: must be one name with its arguments, such as HorizontalFlip: {p: 0.5} "
            "(command line)",
        ),
        (
            SEG,
            ["data.class_map={'#FF0000': 1, '#ff0000': 2}"],
            "data.class_map: has '#ff0000' twice, in upper and lower case; remove one (command line)",
        ),
        (SEG, ["data.class_map={red: 1}"], "data.class_map: 'red' is no colour; write it as '#ff0000' (command line)"),
        (
            SR,
            ["train.perceptual_weights=imagenet"],
            "train.perceptual_weights: is for the loss perceptual, which train.loss does not have; add it or remove "
            "this (command line)",
        ),
        (
            SEG,
            ["train.parallel=fsdp", "optim.name=muon"],
            "train.parallel: fsdp splits the matrices that muon needs whole; use ddp or another optim.name "
            "(command line)",
        ),
    ],
)
def test_values_that_do_not_go_together_are_faults(text, overrides, fault):
    assert faults_of(text, overrides) == [fault]


def test_every_pair_that_does_not_go_together_is_told_at_once():
    faults = faults_of(SR, ["train.loss=ce", "optim.warmup_steps=5000", "eval.protocol=binary"])

    assert [fault.split(":")[0] for fault in faults] == ["optim.warmup_steps", "eval.protocol", "train.loss"]


def test_a_kind_of_error_without_our_wording_still_says_place_value_and_reason(monkeypatch):
    monkeypatch.delitem(faults._WORDING, "greater_than_equal")

    assert override_fault("train.batch_size=-4") == (
        "train.batch_size=-4: Input should be greater than or equal to 1 (command line)"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- a\n- b\n", "my.yaml:1: must hold sections of keys, such as model: and train:"),
        ("rdn", "my.yaml:1: must hold sections of keys, such as model: and train:"),
        ("task: sr\nmodel: !!python/object/apply:os.system [echo]\n", None),
    ],
)
def test_what_cannot_be_a_config_is_told_without_a_list_of_missing_keys(text, fault):
    tag = "my.yaml:2: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; write the plain value"
    assert faults_of(text, ["train.seed=1"]) == [fault or tag]


def test_an_empty_config_misses_each_section():
    assert faults_of("") == [
        f"my.yaml:1: {key}: missing, and it has no default" for key in ("task", "model", "data", "train")
    ]
