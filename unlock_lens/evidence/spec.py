"""The base of everything in a config file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from unlock_lens.errors import shown


class Spec(BaseModel):
    """An immutable part of a config; an unknown key is an error that suggests the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, content: Any) -> Any:
        known = list(cls.model_fields)
        for key in content if isinstance(content, Mapping) else ():
            if key not in known:
                close = difflib.get_close_matches(str(key)[:80] if isinstance(key, str) else "", known, n=1)
                raise ValueError(
                    f"there is no key {shown(key)}; "
                    + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")
                )
        return content
