-- From when on rows are kept: those of requests that began before are deleted (storage.retention), or about to be. One
-- line; a whole hour, so that each line of usage_hours either has all of its rows still or is not to be compared. 0: all.

CREATE TABLE retention (
    kept_since_ns INTEGER NOT NULL
);

INSERT INTO retention VALUES (0);
