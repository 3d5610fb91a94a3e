-- Prompts and answers of the tenants that are captured (docs/content.md), apart from the books: with a retention and a bound
-- of their own, and gone without a trace in them.
--
-- Not partitioned: it has a bound, the oldest rows go first and single ones on demand, and both are found by an index.
-- `request` and `reply` are the bodies as they were sent, cut at a bound (*_cut: there was more); `bytes` is both together.

CREATE TABLE request_contents (
    request_id  uuid    NOT NULL PRIMARY KEY,
    tenant      text    NOT NULL,
    stored_ns   bigint  NOT NULL,
    bytes       bigint  NOT NULL,
    dialect     text    NOT NULL,
    stream      boolean NOT NULL,
    request_cut boolean NOT NULL,
    reply_cut   boolean NOT NULL,
    request     bytea   NOT NULL,
    reply       bytea   NOT NULL
);

-- What goes first when there is too much, and how much there is, without a look at the table.
CREATE INDEX request_contents_by_time ON request_contents (stored_ns) INCLUDE (bytes);
CREATE INDEX request_contents_by_tenant ON request_contents (tenant, stored_ns);

COMMENT ON TABLE request_contents IS 'Prompts and answers of captured tenants, with a retention and a bound of their own';
COMMENT ON COLUMN request_contents.request_id IS 'requests.id';
COMMENT ON COLUMN request_contents.stored_ns IS 'When the request ended, Unix nanoseconds';
COMMENT ON COLUMN request_contents.request IS 'The body of the request as the client sent it';
COMMENT ON COLUMN request_contents.reply IS 'The body of the reply as the client was sent it';
