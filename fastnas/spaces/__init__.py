"""The sets of blueprints that the methods search. Never imports torch."""

from fastnas.spaces.space import Mutation, Space
from fastnas.spaces.spnas import VEGA_V1, SerialRules, SerialSpace

__all__ = ["VEGA_V1", "Mutation", "SerialRules", "SerialSpace", "Space"]
