"""A world for the embedded policies: a list of prices and two tools of one argument each, so that calls are short."""

from collections.abc import Mapping
from typing import ClassVar

from grpo_kit.environments.office.tables import BadArgument, Table, text, whole
from grpo_kit.environments.office.world import World, tool


class TinyOffice(World):
    """Prices of things. An agent looks one up and notes it; a noted price is a new entry without a thing."""

    _tables: ClassVar[Mapping[str, Table]] = {"prices": Table({"thing": text, "price": whole})}

    @tool
    def find(self, thing: str) -> int:
        """Find a price.

        Args:
            thing: What it is the price of.
        """
        wanted = thing.strip().casefold()
        for entry in self._state["prices"].values():
            if str(entry.get("thing", "")).casefold() == wanted and wanted:
                return int(entry["price"])
        raise BadArgument(f"There is no {thing[:20]!r}.")

    @tool
    def note(self, price: int) -> str:
        """Note a price.

        Args:
            price: A whole number.
        """
        self._add_entry("prices", price=price)
        return "noted"
