"""The kinds of values a config holds: numbers within ranges, texts, lists of them.

Scalars mean what `plain_yaml` says, with one addition: where a number belongs, `1e-4` is one, although PyYAML hands it
over as text.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # what YAML 1.2 calls a float and PyYAML leaves as text


def finite(value: object) -> object:
    """Turns exponent notation into the number it is; refuses NaN and infinities."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "must be a finite number")
    return value


def number(value: object) -> object:
    """Refuses true and false, which pydantic would take as 1 and 0; reads `1e-4`."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "must be a number; YAML reads yes, no, on and off as true or false")
    return finite(value)


def one_or_many(value: object) -> object:
    """Takes one text as a list of it."""
    return [value] if isinstance(value, str) else value


def keyword(value: object) -> object:
    """Lets through what JSON holds without loss: scalars and lists of them, numbers finite."""
    if isinstance(value, list):
        return [keyword(item) for item in value]
    if value is not None and not isinstance(value, str | int | float):
        raise PydanticCustomError("keyword_type", "must be a number, text, true, false, null or a list of them")
    return finite(value)


def transform(value: object) -> object:
    """Lets through a name, or one name with its arguments, which may be transforms again."""
    if isinstance(value, str):
        return {value: {}}
    if not isinstance(value, dict) or len(value) != 1:
        raise PydanticCustomError(
            "transform_type", "must be one name with its arguments, such as HorizontalFlip: {p: 0.5}"
        )
    return {str(name): {} if arguments is None else _nested(arguments) for name, arguments in value.items()}


def _nested(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _nested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nested(item) for item in value]
    return keyword(value)


Int = Annotated[int, BeforeValidator(number)]
Float = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(number)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], BeforeValidator(one_or_many, json_schema_input_type=Text | list[Text])]
# inside a list or beside null the range must come before the validator, or the schema does not show it
Byte = Annotated[int, Field(ge=0, le=255), BeforeValidator(number)]
Count = Annotated[int, Field(ge=1, le=1024), BeforeValidator(number)]
Step = Annotated[int, Field(ge=0), BeforeValidator(number)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(number)]
Shrink = Annotated[float, Field(gt=0, le=1), BeforeValidator(number)]
Decay = Annotated[float, Field(ge=0, lt=1), BeforeValidator(number)]
Factor = Annotated[float, Field(ge=0, le=1000), BeforeValidator(number)]
Color = Annotated[list[Byte], Field(min_length=3, max_length=3)]
Keyword = Annotated[
    Any,
    BeforeValidator(keyword),
    WithJsonSchema({"type": ["number", "string", "boolean", "null", "array"]}),
]
Transform = Annotated[
    dict[str, Any],
    BeforeValidator(transform, json_schema_input_type=str | dict[str, Any]),
]
Augmentation = Annotated[
    Annotated[Literal["none", "light", "strong", "microscopy"], Tag("<name>")]
    | Annotated[list[Transform], Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<name>"),
]
