"""The first schema: runs, results, models, releases, trail, mirror."""

import sqlalchemy as sa
from alembic import op

from mlops_nb.core.ledger.migrations.types import INTEGER, NUMBER, TEXT

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "events",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("details", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_kind_subject", "events", ["kind", "subject"])
    op.create_table(
        "leases",
        sa.Column("key", TEXT, nullable=False),
        sa.Column("token", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("pid", INTEGER, nullable=False),
        sa.Column("process_started", TEXT, nullable=False),
        sa.Column("boot", TEXT, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("heartbeat", TEXT, nullable=False),
        sa.Column("acquired", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_leases"),
    )
    op.create_table(
        "model_versions",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("version", INTEGER, autoincrement=False, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("task", TEXT, nullable=False),
        sa.Column("metric", TEXT, nullable=False),
        sa.Column("schema_digest", TEXT, nullable=False),
        sa.Column("metrics", TEXT, nullable=False),
        sa.Column("details", TEXT, nullable=False),
        sa.Column("created", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_model_versions"),
        sa.UniqueConstraint("name", "digest", name="uq_model_versions_name_digest"),
    )
    op.create_table(
        "releases",
        sa.Column("model", TEXT, nullable=False),
        sa.Column("generation", INTEGER, autoincrement=False, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("document", TEXT, nullable=False),
        sa.Column("created", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("model", "generation", name="pk_releases"),
    )
    op.create_table(
        "runs",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("parent", TEXT, nullable=True),
        sa.Column("pipeline", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("started", TEXT, nullable=False),
        sa.Column("ended", TEXT, nullable=True),
        sa.Column("seconds", NUMBER, nullable=True),
        sa.Column("pid", INTEGER, nullable=False),
        sa.Column("process_started", TEXT, nullable=False),
        sa.Column("boot", TEXT, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("heartbeat", TEXT, nullable=False),
        sa.Column("user_name", TEXT, nullable=False),
        sa.Column("python", TEXT, nullable=False),
        sa.Column("command", TEXT, nullable=False),
        sa.Column("git", TEXT, nullable=True),
        sa.Column("error", TEXT, nullable=True),
        sa.ForeignKeyConstraint(["parent"], ["runs.id"], name="fk_runs_parent_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_parent", "runs", ["parent"])
    op.create_index("ix_runs_pipeline_started", "runs", ["pipeline", "started"])
    op.create_table(
        "alias_events",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("alias", TEXT, nullable=False),
        sa.Column("sequence", INTEGER, autoincrement=False, nullable=False),
        sa.Column("version", INTEGER, nullable=True),
        sa.Column("previous", INTEGER, nullable=True),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("evidence", TEXT, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["model_versions.name", "model_versions.version"],
            name="fk_alias_events_name_version_model_versions",
        ),
        sa.PrimaryKeyConstraint("name", "alias", "sequence", name="pk_alias_events"),
    )
    op.create_table(
        "metrics",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_metrics_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "step", "name", name="pk_metrics"),
    )
    op.create_table(
        "mirrors",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("wandb_id", TEXT, nullable=True),
        sa.Column("updated", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_mirrors_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "step", name="pk_mirrors"),
    )
    op.create_table(
        "results",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("cache_key", TEXT, nullable=True),
        sa.Column("pipeline", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("created", TEXT, nullable=False),
        sa.Column("seconds", NUMBER, nullable=True),
        sa.Column("notebook", TEXT, nullable=True),
        sa.Column("parts", TEXT, nullable=False),
        sa.Column("manifest", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_results_run_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_results"),
        sa.UniqueConstraint("cache_key", name="uq_results_cache_key"),
    )
    op.create_index("ix_results_key", "results", ["key"])
    op.create_index("ix_results_run_id", "results", ["run_id"])
    op.create_table(
        "run_parameters",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=True),
        sa.Column("number", NUMBER, nullable=True),
        sa.Column("kind", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_parameters_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "step", "name", name="pk_run_parameters"),
    )
    op.create_table(
        "run_sources",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_sources_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "path", name="pk_run_sources"),
    )
    op.create_table(
        "artifacts",
        sa.Column("result_id", INTEGER, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("meta", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_artifacts_result_id_results"),
        sa.PrimaryKeyConstraint("result_id", "name", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"])
    op.create_table(
        "points",
        sa.Column("result_id", INTEGER, nullable=False),
        sa.Column("position", INTEGER, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("t", NUMBER, nullable=False),
        sa.Column("step", INTEGER, nullable=True),
        sa.Column("value", NUMBER, nullable=True),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_points_result_id_results"),
        sa.PrimaryKeyConstraint("result_id", "position", "name", name="pk_points"),
    )
    op.create_table(
        "run_steps",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("position", INTEGER, nullable=False),
        sa.Column("variant", TEXT, nullable=True),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=True),
        sa.Column("result_id", INTEGER, nullable=True),
        sa.Column("reasons", TEXT, nullable=False),
        sa.Column("started", TEXT, nullable=False),
        sa.Column("ended", TEXT, nullable=True),
        sa.Column("seconds", NUMBER, nullable=True),
        sa.Column("notebook", TEXT, nullable=True),
        sa.Column("attempt", TEXT, nullable=True),
        sa.Column("error", TEXT, nullable=True),
        sa.ForeignKeyConstraint(["result_id"], ["results.id"], name="fk_run_steps_result_id_results"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_steps_run_id_runs"),
        sa.PrimaryKeyConstraint("run_id", "step", name="pk_run_steps"),
    )
    op.create_index("ix_run_steps_result_id", "run_steps", ["result_id"])
    op.create_index("ix_run_steps_step_ended", "run_steps", ["step", "ended"])
