"""How far each step's W&B run is on its way to the service."""

import sqlalchemy as sa
from alembic import op

from mlops_nb.core.ledger.migrations.types import INTEGER, TEXT

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table of deliveries; what was recorded before has none and is pending."""
    op.create_table(
        "deliveries",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("attempts", INTEGER, nullable=False),
        sa.Column("error", TEXT, nullable=True),
        sa.Column("next_try", TEXT, nullable=True),
        sa.Column("updated", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_deliveries_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "step", name="pk_deliveries"),
    )
