"""What people say about runs, what steps cost, and indexes for questions about parameters and metrics."""

import sqlalchemy as sa
from alembic import op

from mlops_nb.core.ledger.migrations.types import NUMBER, TEXT

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create two tables and two indexes."""
    op.create_table(
        "run_annotations",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("text", TEXT, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_annotations_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "kind", "name", name="pk_run_annotations"),
    )
    op.create_table(
        "step_costs",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("cpu_seconds", NUMBER, nullable=False),
        sa.Column("watts_per_core", NUMBER, nullable=False),
        sa.Column("grams_per_kwh", NUMBER, nullable=False),
        sa.Column("price_per_core_hour", NUMBER, nullable=False),
        sa.Column("currency", TEXT, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_step_costs_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "step", name="pk_step_costs"),
    )
    op.create_index("ix_metrics_step_name_value_run_id", "metrics", ["step", "name", "value", "run_id"])
    columns = ["step", "name", "run_id", "number", "value"]
    op.create_index("ix_run_parameters_step_name_run_id_number_value", "run_parameters", columns)
