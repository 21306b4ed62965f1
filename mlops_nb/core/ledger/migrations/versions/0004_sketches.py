"""A sketch of each curve: its shape, its lowest, highest and last point."""

import json
from collections.abc import Iterator
from itertools import groupby, pairwise
from math import isfinite
from typing import Any

import sqlalchemy as sa
from alembic import op

from mlops_nb.core.ledger.migrations.types import INTEGER, NUMBER, TEXT

revision = "0004"
down_revision = "0003"

POINTS = """SELECT result_id, name, COALESCE(step, position) AS place, value FROM points
    WHERE value IS NOT NULL ORDER BY result_id, name, position"""


def upgrade() -> None:
    """Create the table and fill it from the points that there are."""
    sketches = op.create_table(
        "sketches",
        sa.Column("result_id", INTEGER, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("total", INTEGER, nullable=False),
        sa.Column("last", NUMBER, nullable=False),
        sa.Column("low", NUMBER, nullable=False),
        sa.Column("low_place", INTEGER, nullable=False),
        sa.Column("high", NUMBER, nullable=False),
        sa.Column("high_place", INTEGER, nullable=False),
        sa.Column("shape", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_sketches_result_id_results"),
        sa.PrimaryKeyConstraint("result_id", "name", name="pk_sketches"),
    )
    points = op.get_bind().exec_driver_sql(POINTS)
    rows = [row for key, curve in groupby(points, lambda point: tuple(point[:2])) for row in _sketch(key, curve)]
    if rows:
        op.bulk_insert(sketches, rows)


def _sketch(key: tuple[int, str], curve: Any) -> Iterator[dict[str, Any]]:
    found = [(value, place) for _, _, place, value in curve if isfinite(value)]
    if found:
        values, places = [value for value, _ in found], [place for _, place in found]
        low, high = values.index(min(values)), values.index(max(values))
        pieces = min(24, len(values))
        bounds = [number * len(values) // pieces for number in range(pieces + 1)]
        means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
        yield {
            "result_id": key[0],
            "name": key[1],
            "total": len(values),
            "last": values[-1],
            "low": values[low],
            "low_place": places[low],
            "high": values[high],
            "high_place": places[high],
            "shape": json.dumps(means, separators=(",", ":")),
        }
