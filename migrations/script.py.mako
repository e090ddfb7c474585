"""${message}

Revision: ${up_revision}, follows on ${down_revision or "nothing" | comma,n}
"""

# Rules for whoever writes a revision (delete this comment when they are kept):
#
# * Both databases. It runs on SQLite and on PostgreSQL, and tests/integration/test_migrations.py compares the result of the
#   whole chain with the models, CHECKs and partial indexes included: `alembic revision --autogenerate` sees no change of those.
# * CHECKs get lost on SQLite. Batch mode copies a table, and reflection does not bring CHECKs: give them all again with
#   `batch_alter_table(…, table_args=[sa.CheckConstraint(…), …])`. Foreign keys are off meanwhile and checked at the end.
# * Expand, then contract. Workers of the release before run on the new schema until they are restarted. One release adds
#   (nullable, or with a server_default) and writes both; the next one removes. Never rename, never change a meaning in place.
# * A new word of an enum widens its CHECK in one release; the code writes it from the next one on.
# * Short transactions. On PostgreSQL each revision is one; a lock that is not free within 10 s ends it. Fill big tables in
#   batches in a revision of their own, add CHECKs and foreign keys NOT VALID and validate them in the next revision, create
#   indexes with postgresql_concurrently=True inside `with op.get_context().autocommit_block():` (PostgreSQL only).
# * No data loss. A column or table goes only when nothing has read it for a release, and never a ledger or event row.
#   `downgrade` gives back the older schema; if it must drop what people wrote, say so in the docstring above.
# * A revision is frozen: no import from models, words and names written out, and after a release never edited.
# * May be run twice: an upgrade that died runs again from the last revision that was committed.

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
