"""What a page's form sends, without a parser of multipart bodies: our forms hold no files."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from luthier.errors import UsageError

R = TypeVar("R", bound=BaseModel)
MOST = 1 << 20
"""Bytes of a form."""


class Form:
    """Fields of one form."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self.fields = fields

    def all(self, name: str) -> list[str]:
        """Every value of a field that is not empty."""
        return [value for value in self.fields.get(name, []) if value.strip()]

    def one(self, name: str, default: str = "") -> str:
        """The last value of a field."""
        return (self.fields.get(name) or [default])[-1]

    def record(self, record: type[R], *names: str, **values: Any) -> R:
        """Fields as a record; those left empty take its defaults. Errors: UsageError with the field."""
        given = {name: self.one(name).strip() for name in names if self.one(name).strip()}
        try:
            return record.model_validate({**given, **values})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])).replace("_", " ")
            raise UsageError(f"{field}: {str(first['msg'])[:1].lower()}{str(first['msg'])[1:]}") from None


async def form_of(request: Request) -> Form:
    """The form of a request. Errors: UsageError for what is none, or too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST:
            raise UsageError(f"the form is larger than {MOST:,} bytes")
        parts.append(part)
    if size and kind != "application/x-www-form-urlencoded":
        raise UsageError("this takes a form", hint="send application/x-www-form-urlencoded")
    try:
        text = b"".join(parts).decode("utf-8")
        return Form(parse_qs(text, keep_blank_values=True, max_num_fields=200))
    except ValueError:
        raise UsageError("the form cannot be read") from None


Sent = Annotated[Form, Depends(form_of)]
"""The form of a request, as an argument of a route."""
