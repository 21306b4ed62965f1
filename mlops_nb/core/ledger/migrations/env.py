"""What Alembic runs: the steps of one upgrade, on the connection that the ledger hands over."""

from alembic import context

from mlops_nb.core.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
