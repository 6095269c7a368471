"""A struct of many fields enters, a decoder of JSON to structs of those fields that were met so far leaves.

Most logs have half the fields of their stream. One that is nowhere costs as much as one that is in every record: it is
set in each struct, and taken out of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

UNKNOWN = re.compile("Object contains unknown field `(.*?)`")


class Narrow:
    """struct: what decode() gives now. Where a record has a field that is none of `whole`, it is `whole` for good."""

    def __init__(self, whole: type[msgspec.Struct]) -> None:
        self.whole = whole
        self.fields = {f.name: f for f in msgspec.structs.fields(whole)}
        self._become(frozenset(n for n, f in self.fields.items() if f.required))

    def _become(self, met: frozenset[str]) -> None:
        self.met = met
        self.struct = self.whole if met == self.fields.keys() else self._of(met)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self.struct)

    def _of(self, met: frozenset[str]) -> type[msgspec.Struct]:
        """In the order of the whole struct, so that the first mistake of a record is the same."""
        some = [f for n, f in self.fields.items() if n in met]
        shape = [(f.name, f.type) if f.required else (f.name, f.type, f.default) for f in some]
        return msgspec.defstruct(self.whole.__name__, shape, kw_only=True, gc=False, forbid_unknown_fields=True)

    def decode(self, records: Sequence[bytes]) -> list[Any]:
        """One struct of each record. Raises what msgspec does where one is none."""
        while True:
            struct, decode = self.struct, self._decoder.decode
            try:
                return list(map(decode, records))
            except msgspec.ValidationError as error:
                if struct is self.whole or not (unknown := UNKNOWN.match(str(error))):
                    raise
                ours = unknown[1] in self.fields
                self._become(self.met | {unknown[1]} if ours else frozenset(self.fields))
