"""The part of a spec that says how MLflow tracks a run."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ezm_pl.spec.fields import Strict

_TAG = re.compile(r"[/\w.\- :]+")
_MAX_TAG_LENGTH, _MAX_VALUE_LENGTH = 250, 6000
_RESERVED_TAGS = ("mlflow.", "sweep.", "resume.")


class TrackingSpec(Strict):
    """MLflow."""

    experiment: str = Field("ezm", min_length=1, max_length=500)
    uri: str | None = Field(None, description="null: MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db")
    tags: dict[str, str] = Field({})

    @field_validator("tags")
    @classmethod
    def _tags_that_mlflow_takes(cls, tags: dict[str, str]) -> dict[str, str]:
        for key, value in tags.items():
            plain = posixpath.normpath(key) == key and key != "." and not key.startswith(("/", ".."))
            if not _TAG.fullmatch(key) or not plain:
                raise ValueError(
                    f"{key!r}: letters, digits and _ - . : / and space expected, without empty parts or `..`"
                )
            if len(key) > _MAX_TAG_LENGTH:
                raise ValueError(f"{key[:20] + '...'!r}: at most {_MAX_TAG_LENGTH} characters expected")
            if len(value) > _MAX_VALUE_LENGTH:
                raise ValueError(f"{key!r}: a value of at most {_MAX_VALUE_LENGTH} characters expected")
            if key.startswith(_RESERVED_TAGS):
                raise ValueError(f"{key!r}: tags under {', '.join(_RESERVED_TAGS)} are reserved")
        return tags

    @field_validator("uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password:
            raise ValueError("holds a password, and specs are logged; set MLFLOW_TRACKING_URI instead")
        return uri
