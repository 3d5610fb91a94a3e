"""What the parts of the control process keep of themselves, under the names of metrics: read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgegw.content.shipper import ContentShipper
from edgegw.control.journals import Journals
from edgegw.control.limit_figures import LimitFigures
from edgegw.keys.feed import KeyFeed
from edgegw.ledger.adoption import Adoption
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.upkeep import Upkeeper
from edgegw.process_figures import cpu_s, resident_bytes
from edgegw.telemetry import names
from edgegw.telemetry.family import Family
from edgegw.telemetry.metrics import Figure
from edgegw.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from edgegw.limits.redis.authority import RedisAuthority
    from edgegw.telemetry.metric_export import MetricExporter

Figures = dict[Family, Callable[[], Figure]]


def of_books(shipper: Shipper, upkeeper: Upkeeper) -> Figures:
    tally = shipper.tally
    return {
        names.LEDGER_LAG: lambda: shipper.lag_s,
        names.LEDGER_ROWS: lambda: tally.rows,
        names.LEDGER_BATCHES: lambda: tally.batches,
        names.LEDGER_BATCH_SECONDS: lambda: tally.write_s,
        names.LEDGER_REJECTED: lambda: tally.rejected,
        names.LEDGER_REJECTED_LOST: lambda: tally.rejected_lost,
        names.LEDGER_ERRORS: lambda: tally.errors,
        names.LEDGER_FAILING: lambda: tally.failing is not None,
        names.LEDGER_TELLING_ERRORS: lambda: shipper.observer_errors,
        names.LEDGER_UPKEEP_ERRORS: lambda: upkeeper.tally.errors,
        names.LEDGER_INTERRUPTED: lambda: tally.interrupted,
        names.LEDGER_DAMAGE: lambda: {(kind,): count for kind, count in asdict(tally.damage).items()},
    }


def of_journals(journals: Journals) -> Figures:
    return {
        names.JOURNAL_BYTES: journals.bytes,
        names.JOURNAL_TROUBLE: journals.troubled,
        names.JOURNAL_DROPPED: journals.dropped,
        names.JOURNAL_LOST: journals.lost,
        names.JOURNAL_SYNC_ERRORS: journals.sync_errors,
    }


def of_adoption(adoption: Adoption) -> Figures:
    adopted = adoption.adopted
    return {
        names.ADOPTED_JOURNALS: lambda: adopted.journals,
        names.ADOPTED_ROWS: lambda: adopted.rows,
        names.ADOPTION_FAILURES: lambda: adopted.failures,
        names.ADOPTED_DAMAGE: lambda: {(kind,): count for kind, count in asdict(adopted.damage).items()},
    }


def of_contents(contents: ContentShipper) -> Figures:
    tally = contents.tally
    return {
        names.CONTENT_STORED: lambda: tally.stored,
        names.CONTENT_LOST: lambda: tally.lost,
        names.CONTENT_REMOVED: lambda: tally.removed,
        names.CONTENT_ERRORS: lambda: tally.errors,
    }


def of_limits(limits: LimitFigures) -> Figures:
    return {names.LIMIT: limits.limits, names.LIMIT_LEFT: limits.left, names.LIMIT_LEASED: limits.leased}


def of_redis(authority: RedisAuthority) -> Figures:
    tally = authority.tally
    return {
        names.REDIS_CALLS: lambda: tally.calls,
        names.REDIS_OPERATIONS: lambda: tally.operations,
        names.REDIS_CALL_SECONDS: lambda: tally.answered_s,
        names.REDIS_FAILURES: lambda: {(kind,): count for kind, count in sorted(tally.failures.items())},
        names.REDIS_AWAY: lambda: authority.away_s > 0,
        names.REDIS_ABSENCES: lambda: tally.absences,
        names.REDIS_REPLICAS: lambda: authority.replicas,
    }


def of_keys(feed: KeyFeed) -> Figures:
    return {names.KEYS_FAILING: lambda: feed.failing, names.KEYS_KNOWN: lambda: feed.known}


def of_tracing(tracing: Tracing) -> Figures:
    return {
        names.TRACES_SENT: lambda: tracing.sent,
        names.TRACES_WAITING: lambda: tracing.waiting,
        names.TRACES_DROPPED: lambda: tracing.dropped,
        names.TRACES_CONTENT: lambda: tracing.content,
    }


def of_metric_export(exporter: MetricExporter) -> Figures:
    return {names.METRIC_EXPORTS: lambda: exporter.exports, names.METRIC_EXPORT_FAILURES: lambda: exporter.failures}


def of_processes(pids: Mapping[str, int | str], started_s: float, lag_s: Callable[[], float]) -> Figures:
    """Of those without vitals, by their names; `started_s` and `lag_s` are this one's."""
    return {
        names.PROCESS_MEMORY: lambda: {(name,): resident_bytes(pid) for name, pid in pids.items()},
        names.PROCESS_CPU: lambda: {(name,): cpu_s(pid) for name, pid in pids.items()},
        names.CONTROL_START: lambda: started_s,
        names.CONTROL_LAG: lag_s,
    }


def of_settings(source: str, digest: str) -> Figures:
    return {names.SETTINGS_INFO: lambda: {(source, digest): 1}}
