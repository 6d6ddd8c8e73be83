"""The page that a model has on the hub."""

from __future__ import annotations

from densekit.cards import Card

_PIPELINES = {"sr": "image-to-image", "seg": "image-segmentation", "encoder": "image-feature-extraction"}
_TASKS = {"sr": "super-resolution", "seg": "segmentation", "encoder": "image features"}
_OTHERS = ("bicubic",)  # figures that are not the model's own


def describe_model(name: str, card: Card, num_parameters: int) -> str:
    """Returns the Markdown of a model's page, with the header that the hub reads.

    Every figure stands beside its protocol and its data, and the licence is that of the training data. `name` is what
    `densekit.load` takes: a hub id or a folder.
    """
    from huggingface_hub import EvalResult, ModelCardData

    figures = {key: value for key, value in card.metrics.items() if isinstance(value, int | float)}
    protocol, data = (str(card.metrics.get(key, "not stated")) for key in ("protocol", "data"))
    results = [
        EvalResult(
            task_type=_PIPELINES[card.task],
            dataset_type=data,
            dataset_name=data,
            metric_type=key,
            metric_name=f"{key} ({protocol})",
            metric_value=value,
        )
        for key, value in figures.items()
        if key not in _OTHERS
    ]
    header = ModelCardData(
        library_name="densekit",
        pipeline_tag=_PIPELINES[card.task],
        tags=["densekit", card.model, _TASKS[card.task]],
        license="other",
        license_name="that-of-the-training-data",
        model_name=name,
        eval_results=results or None,
    )
    arguments = ", ".join(f"{key}={value!r}" for key, value in card.arguments.items())
    sections = [
        f"---\n{header.to_yaml()}\n---",
        f"# {name}",
        f"{_TASKS[card.task].capitalize()} with `{card.model}` of densekit, {num_parameters:,} parameters"
        f"{f', {card.step:,} steps' if card.step else ''}{f', config `{card.recipe}`' if card.recipe else ''}.",
        _usage(name, card),
    ]
    if figures:
        rows = [f"| {key} | {value:.4g} | {data} | {protocol} |" for key, value in figures.items()]
        sections += ["## Figures", "\n".join(["| figure | value | data | protocol |", "|---|---|---|---|", *rows])]
    sections += [
        "## Training data and licence",
        f"Trained on: {card.data or 'not stated'}.",
        f"The weights are bound by the licence of that data: **{card.licence or 'not stated'}**.",
        "## Network",
        f"`densekit.create_model({', '.join(filter(None, [repr(card.model), arguments]))})`",
    ]
    if card.classes:
        sections.append("Classes, by number: " + ", ".join(f"{i} {text}" for i, text in enumerate(card.classes)) + ".")
    if card.bn_mode != "running":
        sections.append(f"Batch norms predict with statistics of mode `{card.bn_mode}`.")
    return "\n\n".join(sections) + "\n"


def _usage(name: str, card: Card) -> str:
    """Returns how the model is used, as a block of Python."""
    lines = {
        "sr": [
            f'upscale = densekit.load("{name}")',
            'image = upscale.predict("photo.jpg")',
        ],
        "seg": [
            f'segment = densekit.load("{name}")',
            'ids = segment.predict("photo.jpg")',
        ],
        "encoder": [f'encoder = densekit.create_encoder("{card.model}", weights="{name}")'],
    }[card.task]
    return "\n".join(["```python", "import densekit", "", *lines, "```"])
