-- Positions are never reused: sequence by AUTOINCREMENT, offsets by the ends table.
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL
);
CREATE TABLE records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    topic INTEGER NOT NULL,
    "partition" INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    key BLOB,
    value BLOB,
    headers BLOB
);
CREATE UNIQUE INDEX records_by_position ON records (topic, "partition", "offset");
CREATE TABLE ends (
    topic INTEGER NOT NULL,
    "partition" INTEGER NOT NULL,
    next INTEGER NOT NULL,
    PRIMARY KEY (topic, "partition")
) WITHOUT ROWID;
CREATE TABLE offsets (
    consumer_group TEXT NOT NULL,
    topic INTEGER NOT NULL,
    "partition" INTEGER NOT NULL,
    next INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, topic, "partition")
) WITHOUT ROWID;
CREATE TABLE states (
    consumer_group TEXT NOT NULL,
    "partition" INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    deadline_ms INTEGER,
    PRIMARY KEY (consumer_group, "partition", key)
);
CREATE INDEX states_by_deadline ON states (consumer_group, deadline_ms) WHERE deadline_ms IS NOT NULL;
CREATE TABLE members (
    consumer_group TEXT NOT NULL,
    member TEXT NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, member)
) WITHOUT ROWID;
CREATE TABLE leases (
    consumer_group TEXT NOT NULL,
    "partition" INTEGER NOT NULL,
    member TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, "partition")
) WITHOUT ROWID;
