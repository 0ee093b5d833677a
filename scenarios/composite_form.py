"""Each word that lists or combines parts as one table: reading, writing, schema and reference follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .combinators import ON_FAILURE, Sequence, Together
from .composites import Choose, Held, Limited, Repeat, Scaled, Share, Stretched, Weighted, Where
from .exporter_form import Truth
from .schema import Field, Kind, Listed, Number, Quantity, Record, Schema, Text, Whole, Word

OF: Final = "of"
_PHASE: Final = Field("phase", "phase", Text(), "name of the parts that have none")
LISTS: Final = {
    "sequence": Record(
        Sequence,
        (
            _PHASE,
            Field("on_failure", "on_failure", Word(ON_FAILURE), "what a load that fails ends: the run, or its own part only"),
            Field("carry", "carry", Truth(), "what a part loads is kept up until the sequence ends"),
        ),
    ),
    "together": Record(Together, (_PHASE,)),
}


def operators(plan: Kind, targets: Record) -> Mapping[str, Record]:
    """Return the table of each word; the word itself is its first key."""
    share = Record(
        Share, (Field("weight", "weight", Number(), "in any unit; its share of the sum counts"), Field(OF, "part", plan, "the part"))
    )
    part, phase = Field(OF, "part", plan, "the part"), _PHASE
    duration, fraction = Quantity("duration"), Quantity("fraction")
    tables = (
        (Weighted, (Field("weighted", "shares", Listed(share, least=1), "the parts, each with its weight"), phase)),
        (Choose, (Field("choose", "shares", Listed(share, least=1), "the parts, each with its weight"), phase)),
        (
            Where,
            (
                Field("where", "targets", targets, "what a node must be: role, names, addresses, labels"),
                part,
                Field("otherwise", "otherwise", plan, "the part for the other nodes"),
            ),
        ),
        (Repeat, (Field("repeat", "count", Whole(1), "how many times"), part)),
        (Scaled, (Field("scaled", "factor", Number(), "what strengths are multiplied by"), part)),
        (Stretched, (Field("stretched", "factor", Number(), "what times are multiplied by"), part)),
        (Limited, (Field("limited", "for_s", duration, "after which it ends at the latest"), part)),
        (
            Held,
            (
                Field("composite", "name", Text(), "its name, and its phase where there is no other"),
                part,
                Field("for", "for_s", duration, "how long; what lasts less begins again"),
                Field("strength", "strength", fraction, "share of all its strengths"),
                phase,
                Field("targets", "targets", targets, "which of the scenario's targets"),
                Field("tolerance", "tolerance", fraction, "how far achieved may differ from asked"),
            ),
        ),
    )
    return {table[0].key: Record(cls, table, (cls.__doc__ or "").strip().split("\n")[0]) for cls, table in tables}


def combined_schema(tables: Mapping[str, Record]) -> Schema:
    """Return the schema of any of the words: the word decides which one counts, so that a nested part is checked once, not by each."""
    words: list[Schema] = [{"required": [word]} for word in tables]
    chosen = [{"if": {"required": [word]}, "then": record.schema()} for word, record in tables.items()]
    return {"type": "object", "oneOf": words, "allOf": chosen}
