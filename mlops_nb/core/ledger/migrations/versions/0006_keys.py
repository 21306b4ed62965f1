"""Runs that another scheduler knows by a key, and what their finished calls answered."""

import sqlalchemy as sa
from alembic import op

from mlops_nb.core.ledger.migrations.types import TEXT

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create two tables."""
    op.create_table(
        "run_keys",
        sa.Column("pipeline", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_keys_run_id_runs"),
        sa.PrimaryKeyConstraint("pipeline", "key", name="pk_run_keys"),
        sa.UniqueConstraint("run_id", name="uq_run_keys_run_id"),
    )
    op.create_table(
        "run_calls",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("steps", TEXT, nullable=False),
        sa.Column("document", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_calls_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "steps", name="pk_run_calls"),
    )
