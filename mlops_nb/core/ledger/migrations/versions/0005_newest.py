"""An index for the newest runs of all pipelines."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create it."""
    op.create_index("ix_runs_started_id", "runs", ["started", "id"])
