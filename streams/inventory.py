"""asynchealth.toml enters, whom to call leaves: the owner of a service, else who is on call for that sort of trouble.

[services.payment]
owner = "Payments"
contact = "@payments-oncall"

[contacts."Timeout cascade"]   # over those of contacts.toml, which are the playbook's
team = "Edge"
contact = "@edge-oncall"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from streams.problems import Problem
from streams.settings import CONFIG, read

SHIPPED = Path(__file__).with_name("contacts.toml")
EXAMPLE = 'services.payment = { owner = "Payments", contact = "@payments-oncall" }'


class Group(msgspec.Struct, forbid_unknown_fields=True):
    """On call for one sort of trouble."""

    team: str = ""
    contact: str = ""
    detectors: list[str] = []


class Owner(msgspec.Struct):
    owner: str = ""
    contact: str = ""


@dataclass(frozen=True)
class Contact:
    """of: what makes them the ones to call."""

    team: str
    contact: str
    of: str

    def __str__(self) -> str:
        return f"{' '.join(n for n in (self.team, self.contact) if n)} ({self.of})"


@dataclass(frozen=True)
class Inventory:
    owners: Mapping[str, Owner]
    groups: Mapping[str, Group]

    def contacts(self, service: str | None, detector: str) -> list[Contact]:
        """First whoever owns the service, then who is on call for what was found."""
        return [*self._owner(service or ""), *self._on_call(detector)]

    @property
    def everyone(self) -> list[Contact]:
        """Who is on call for what, then who owns which service."""
        on_call = [Contact(g.team, g.contact, name) for name, g in self.groups.items()]
        return on_call + [Contact(o.owner, o.contact, n) for n, o in self.owners.items() if o.owner or o.contact]

    def _owner(self, service: str) -> Iterator[Contact]:
        mine = self.owners.get(service, Owner())
        if mine.owner or mine.contact:
            yield Contact(mine.owner, mine.contact, f"owner of {service}")

    def _on_call(self, detector: str) -> Iterator[Contact]:
        named = [n for n, g in self.groups.items() if detector in g.detectors]
        rest = [n for n, g in self.groups.items() if not g.detectors]
        for name in (named or rest)[:1]:
            yield Contact(self.groups[name].team, self.groups[name].contact, name)


def inventory(path: Path = Path(CONFIG)) -> Inventory:
    own = read(path)
    try:
        owners = msgspec.convert(own.get("services", {}), dict[str, Owner])
        given = own.get("contacts", {})
        groups = msgspec.convert(_over(read(SHIPPED)["contacts"], given), dict[str, Group])
    except (msgspec.ValidationError, TypeError) as error:
        raise Problem(f"{path}: owners and contacts", str(error), f"write it as in: {EXAMPLE}") from None
    return Inventory(owners, groups)


def _over(shipped: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given first, since the first that names a detector counts."""
    return {n: {**shipped.get(n, {}), **g} for n, g in given.items()} | {
        n: s for n, s in shipped.items() if n not in given
    }
