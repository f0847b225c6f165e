"""The tables of the state file, as the migrations that make them."""

from __future__ import annotations

from typing import Final

__all__ = ["MIGRATIONS"]

# Each entry migrates the file from the version that is the entry's index to the next version.
MIGRATIONS: Final = (
    """
    CREATE TABLE host_keys (
        account TEXT NOT NULL,
        container_id INTEGER NOT NULL,
        public_key TEXT NOT NULL,
        pinned_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
        PRIMARY KEY (account, container_id)
    ) STRICT
    """,
    """
    CREATE TABLE rentals (
        account TEXT NOT NULL,
        name TEXT NOT NULL,
        stage TEXT NOT NULL,
        container_id INTEGER,
        shown_name TEXT,
        node_name TEXT NOT NULL,
        gpus INTEGER NOT NULL,
        hourly_price TEXT,
        intended_at TEXT NOT NULL,
        expires_at TEXT,
        certain_at TEXT NOT NULL,
        owner TEXT,
        PRIMARY KEY (account, name)
    ) STRICT
    """,
    """
    CREATE TABLE passwords (
        account TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,
        auth_id INTEGER,
        claimed_at REAL NOT NULL DEFAULT 0
    ) STRICT
    """,
    "ALTER TABLE rentals ADD COLUMN boot TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE rentals ADD COLUMN booted_at TEXT",
    "ALTER TABLE rentals ADD COLUMN longest_create REAL",
    """
    CREATE TABLE fingerprints (
        fingerprint TEXT NOT NULL PRIMARY KEY,
        account TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE starts (
        origin TEXT NOT NULL,
        node_name TEXT NOT NULL,
        image_id INTEGER NOT NULL,
        failed_at REAL,
        started_at REAL,
        PRIMARY KEY (origin, node_name, image_id)
    ) STRICT
    """,
    "ALTER TABLE rentals ADD COLUMN refused INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE rentals ADD COLUMN time_limit TEXT",
    "ALTER TABLE rentals ADD COLUMN budget TEXT",
    "ALTER TABLE rentals ADD COLUMN spent_before TEXT NOT NULL DEFAULT '0'",
    "ALTER TABLE rentals ADD COLUMN extendable_to TEXT",
    "ALTER TABLE rentals ADD COLUMN label TEXT",
    "ALTER TABLE rentals ADD COLUMN gpu_name TEXT",
    "ALTER TABLE rentals ADD COLUMN region TEXT",
    "ALTER TABLE rentals ADD COLUMN image TEXT",
    "ALTER TABLE rentals ADD COLUMN currency TEXT",
    "ALTER TABLE rentals ADD COLUMN created_at TEXT",
    "ALTER TABLE rentals ADD COLUMN ready_at TEXT",
    "ALTER TABLE rentals ADD COLUMN cause TEXT",
    "ALTER TABLE rentals ADD COLUMN ended_at TEXT",
    """
    CREATE TABLE past_rentals (
        account TEXT NOT NULL,
        name TEXT NOT NULL,
        label TEXT,
        container_id INTEGER,
        gpu_name TEXT,
        gpus INTEGER NOT NULL,
        node_name TEXT NOT NULL,
        region TEXT,
        image TEXT,
        hourly_price TEXT,
        currency TEXT,
        intended_at TEXT NOT NULL,
        created_at TEXT,
        ready_at TEXT,
        ended_at TEXT NOT NULL,
        cause TEXT,
        spent INTEGER,
        PRIMARY KEY (account, name)
    ) STRICT
    """,
    "CREATE INDEX past_rentals_by_end ON past_rentals (account, ended_at)",
    """
    CREATE TABLE budgets (
        origin TEXT NOT NULL,
        name TEXT NOT NULL,
        "limit" TEXT,
        per TEXT,
        hourly TEXT,
        currency TEXT NOT NULL,
        folded INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (origin, name)
    ) STRICT
    """,
    "ALTER TABLE rentals ADD COLUMN shared_budget TEXT",
    "ALTER TABLE past_rentals ADD COLUMN shared_budget TEXT",
    "CREATE INDEX past_rentals_by_budget ON past_rentals (shared_budget, ended_at) WHERE shared_budget IS NOT NULL",
    "ALTER TABLE rentals ADD COLUMN guardian TEXT",
    "ALTER TABLE rentals ADD COLUMN release_job TEXT",
    "ALTER TABLE rentals ADD COLUMN release_job_id TEXT",
    "ALTER TABLE rentals ADD COLUMN idle_timeout REAL",
    "ALTER TABLE rentals ADD COLUMN idle_since TEXT",
    "ALTER TABLE rentals ADD COLUMN idle_read_at TEXT",
    "ALTER TABLE budgets ADD COLUMN expires_at TEXT",
)
