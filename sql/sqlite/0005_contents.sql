-- Prompts and answers of the tenants that are captured (docs/content.md), apart from the books: with a retention and a bound
-- of their own, and gone without a trace in them.
--
-- `request` and `reply` are the bodies as they were sent, cut at a bound (*_cut: there was more); `bytes` is both together.
-- The small columns come first: they are read without the pages that the bodies fill.

CREATE TABLE request_contents (
    request_id  TEXT    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    stored_ns   INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    dialect     TEXT    NOT NULL,
    stream      INTEGER NOT NULL,
    request_cut INTEGER NOT NULL,
    reply_cut   INTEGER NOT NULL,
    request     BLOB    NOT NULL,
    reply       BLOB    NOT NULL
);

-- What goes first when there is too much, and how much there is, without a look at the table.
CREATE INDEX request_contents_by_time ON request_contents (stored_ns, bytes);

CREATE INDEX request_contents_by_tenant ON request_contents (tenant, stored_ns);
