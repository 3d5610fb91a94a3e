"""The ledger in PostgreSQL. All that knows asyncpg is in here; nothing here is loaded unless a PostgreSQL is set."""
