"""Types of columns that hold and order the same on SQLite and Postgres."""

import sqlalchemy as sa

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # in the order of its code points, as in SQLite
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")  # of 64 bits, as in SQLite
NUMBER = sa.Float(53)
