"""The names of our metrics: prefix, unit, labels and what each one means, in one table for all who expose or read them.

Nothing but values. Names follow Prometheus' conventions (base units, `_total` for counters); the dashboard and the
alerts of k8s/observability are written against this table. In OTLP they are the same in OpenTelemetry's way (a dot, the
unit apart), so that a collector that writes them for Prometheus makes the names of this table again. The `gen_ai.*`
names of OpenTelemetry's semantic conventions for generative AI (0.1.0) are a second rendering of the same figures.
"""

from __future__ import annotations

from edgegw.telemetry.family import Family

TARGET = ("provider", "model")

REQUESTS = Family(
    "edgegw_requests_total",
    "counter",
    "Requests that have ended: the route taken, the last target, how they ended, the HTTP status the client was told "
    "(0 when nobody knows) and the kind of error.",
    ("route", *TARGET, "state", "status", "error"),
)
REQUEST_DURATION = Family(
    "edgegw_request_duration_seconds",
    "histogram",
    "From a request's head to the last byte of its reply.",
    ("stream",),
)
OVERHEAD = Family(
    "edgegw_gateway_overhead_seconds",
    "histogram",
    "The gateway's own share of a request's duration: all of it but the time spent waiting for providers.",
)
TENANT_REQUESTS = Family(
    "edgegw_tenant_requests_total", "counter", "Requests that have ended, by whose they were.", ("tenant", "state")
)
TENANT_TOKENS = Family(
    "edgegw_tenant_tokens_total",
    "counter",
    "Tokens as in edgegw_tokens_total, by whose they were.",
    ("tenant", "type"),
)
TENANT_COST = Family(
    "edgegw_tenant_cost_usd_total",
    "counter",
    "What they cost, in US dollars, as far as models have a price.",
    ("tenant",),
)
ATTEMPTS = Family(
    "edgegw_attempts_total",
    "counter",
    "Attempts at providers that have ended; kind is primary, retry or fallback, outcome is ok or the kind of error.",
    (*TARGET, "kind", "outcome"),
)
ATTEMPT_DURATION = Family(
    "edgegw_attempt_duration_seconds", "histogram", "From the start of an attempt to its end.", (*TARGET, "outcome")
)
RETRIES = Family(
    "edgegw_retries_total",
    "counter",
    "Attempts made at the same target again, by the error that led to them.",
    (*TARGET, "reason"),
)
FALLBACKS = Family(
    "edgegw_fallbacks_total",
    "counter",
    "Attempts made at a further target of a route, by the error that led to them.",
    (*TARGET, "reason"),
)
GATE_SAVES = Family(
    "edgegw_gate_saves_total",
    "counter",
    "Attempts that failed after a status of 200 and before the client had a byte, and were followed by another one.",
    (*TARGET, "reason"),
)
TOKENS = Family(
    "edgegw_tokens_total",
    "counter",
    "Tokens as counted by the provider, else by us; type is input or output.",
    (*TARGET, "type"),
)
CACHED_TOKENS = Family(
    "edgegw_cached_tokens_total", "counter", "Input tokens that came from the provider's cache.", TARGET
)
CACHE_WRITE_TOKENS = Family(
    "edgegw_cache_write_tokens_total", "counter", "Input tokens that were written to the provider's cache.", TARGET
)
REASONING_TOKENS = Family("edgegw_reasoning_tokens_total", "counter", "Output tokens that were reasoning.", TARGET)
COST = Family(
    "edgegw_cost_usd_total",
    "counter",
    "What attempts cost, in US dollars, as far as their models have a price.",
    TARGET,
)
UNPRICED = Family(
    "edgegw_unpriced_attempts_total",
    "counter",
    "Attempts that used tokens for which nobody knows a price.",
    TARGET,
)
FIRST_TOKEN = Family(
    "edgegw_time_to_first_token_seconds",
    "histogram",
    "From the start of an attempt to the first content of its reply.",
    TARGET,
)
TIME_PER_TOKEN = Family(
    "edgegw_time_per_output_token_seconds",
    "histogram",
    "Of attempts with two output tokens or more: the time after the first one, by each of the others.",
    TARGET,
)
BREAKER_STATE = Family(
    "edgegw_breaker_state",
    "gauge",
    "Breakers that are not closed, per worker: 1 open, 2 half open (one request is out to see). A closed one is not "
    "shown.",
    ("worker", *TARGET),
)
LIMIT = Family("edgegw_limit", "gauge", "What a tenant may use, by the limits that were asked.", ("tenant", "limit"))
LIMIT_LEFT = Family(
    "edgegw_limit_left",
    "gauge",
    "What is left and leased to no worker; below 0: a debt.",
    ("tenant", "limit"),
)
LIMIT_LEASED = Family("edgegw_limit_leased", "gauge", "What workers hold of it and have not used.", ("tenant", "limit"))
BUILD_INFO = Family("edgegw_build_info", "gauge", "Always 1; the label tells the version.", ("version",))
SETTINGS_INFO = Family(
    "edgegw_settings_info",
    "gauge",
    "Always 1; the labels tell the settings in force apart: where they came from, and a hash without secrets.",
    ("source", "hash"),
)

PROCESS_MEMORY = Family(
    "edgegw_process_resident_memory_bytes",
    "gauge",
    "Resident memory of the other processes: process is control or supervisor.",
    ("process",),
)
PROCESS_CPU = Family("edgegw_process_cpu_seconds_total", "counter", "CPU time they used.", ("process",))
CONTROL_START = Family(
    "edgegw_control_start_time_seconds", "gauge", "When the control process started (Unix time): counters begin there."
)
CONTROL_LAG = Family(
    "edgegw_control_loop_lag_seconds",
    "gauge",
    "How late the control process's event loop was, at most, since it was last asked.",
)

KEYS_FAILING = Family("edgegw_keys_failing", "gauge", "1 while keys cannot be read from the database, else 0.")
KEYS_KNOWN = Family("edgegw_keys_known", "gauge", "Keys that workers are told of, beside those of the settings.")

LEDGER_FAILING = Family("edgegw_ledger_failing", "gauge", "1 while the database takes no rows, else 0.")
LEDGER_TELLING_ERRORS = Family(
    "edgegw_ledger_telling_errors_total", "counter", "Records that metrics or spans failed on: a defect."
)
LEDGER_LAG = Family("edgegw_ledger_lag_seconds", "gauge", "Age of the oldest record that is not in the database yet.")
LEDGER_ROWS = Family("edgegw_ledger_rows_total", "counter", "Rows written since the control process started.")
LEDGER_BATCHES = Family("edgegw_ledger_batches_total", "counter", "Transactions that wrote them.")
LEDGER_BATCH_SECONDS = Family(
    "edgegw_ledger_batch_seconds_total", "counter", "What those transactions took, all together."
)
LEDGER_REJECTED = Family(
    "edgegw_ledger_rejected_total", "counter", "Rows that the database does not take, set aside in state_dir/rejected."
)
LEDGER_REJECTED_LOST = Family(
    "edgegw_ledger_rejected_lost_total", "counter", "Those of them that found no more room there."
)
LEDGER_ERRORS = Family("edgegw_ledger_errors_total", "counter", "Batches that the database refused and that were kept.")
LEDGER_INTERRUPTED = Family(
    "edgegw_ledger_interrupted_total", "counter", "Requests closed in the books because their worker had died."
)
LEDGER_DAMAGE = Family(
    "edgegw_ledger_damage_total",
    "counter",
    "What the journals had that was not as it should be: kind is torn, gaps, unreadable, foreign or failed.",
    ("kind",),
)
LEDGER_UPKEEP_ERRORS = Family(
    "edgegw_ledger_upkeep_errors_total",
    "counter",
    "Times that old rows could not be deleted, or partitions not be made.",
)
JOURNAL_BYTES = Family("edgegw_journal_bytes", "gauge", "Bytes of all workers' journals on disk, shipped or not.")
JOURNAL_TROUBLE = Family(
    "edgegw_journal_trouble",
    "gauge",
    "Workers whose journal takes no new exchange now: state is full or failing.",
    ("state",),
)
JOURNAL_DROPPED = Family(
    "edgegw_journal_dropped_total",
    "counter",
    "Requests without a row because the journal took none: kind is exchange (a provider was asked) or refusal.",
    ("kind",),
)
JOURNAL_LOST = Family(
    "edgegw_journal_lost_total", "counter", "Records of begun requests that found neither reserve nor disk."
)
ADOPTED_JOURNALS = Family(
    "edgegw_adopted_journals_total", "counter", "Journals of gateways that are gone, shipped to their end."
)
ADOPTED_ROWS = Family("edgegw_adopted_rows_total", "counter", "Rows that came from them.")
ADOPTED_DAMAGE = Family(
    "edgegw_adopted_damage_total", "counter", "As edgegw_ledger_damage_total, of adopted journals.", ("kind",)
)
ADOPTION_FAILURES = Family(
    "edgegw_adoption_failures_total", "counter", "Times that such a journal could not be looked at, locked or shipped."
)
JOURNAL_SYNC_ERRORS = Family(
    "edgegw_journal_sync_errors_total",
    "counter",
    "What the disk did not take: kind is round (a sync of all journals) or wait (a request that waited for its own).",
    ("kind",),
)

CONTENT_STORED = Family("edgegw_content_stored_total", "counter", "Prompts with their answers stored in the database.")
CONTENT_LOST = Family(
    "edgegw_content_lost_total", "counter", "Prompts with their answers that no file or no database would hold."
)
CONTENT_REMOVED = Family(
    "edgegw_content_removed_total", "counter", "Prompts with their answers deleted for their age, or for want of room."
)
CONTENT_ERRORS = Family("edgegw_content_errors_total", "counter", "Times that content could not be stored yet.")

# Only with Redis as the authority of limits.
REDIS_CALLS = Family("edgegw_redis_calls_total", "counter", "Calls of the script that counts limits in Redis.")
REDIS_OPERATIONS = Family(
    "edgegw_redis_operations_total", "counter", "Leases asked for, returned and charged in those calls."
)
REDIS_CALL_SECONDS = Family(
    "edgegw_redis_call_seconds_total", "counter", "Time between sending those calls and their answers, all together."
)
REDIS_FAILURES = Family(
    "edgegw_redis_failures_total",
    "counter",
    "Calls that failed: kind is timeout, connection, or the first word of what Redis replied.",
    ("kind",),
)
REDIS_AWAY = Family("edgegw_redis_away", "gauge", "1 while limits are kept without Redis, or a part of it, else 0.")
REDIS_ABSENCES = Family("edgegw_redis_absences_total", "counter", "How often Redis went away.")
REDIS_REPLICAS = Family("edgegw_redis_replicas", "gauge", "Gateways that share the limits, lately seen, with this one.")

TRACES_SENT = Family("edgegw_traces_sent_total", "counter", "Spans that were exported.")
TRACES_WAITING = Family("edgegw_traces_waiting", "gauge", "Spans that wait to be exported.")
TRACES_DROPPED = Family(
    "edgegw_traces_dropped_total", "counter", "Spans that were not exported, by the reason for it.", ("reason",)
)
TRACES_CONTENT = Family(
    "edgegw_traces_content_total",
    "counter",
    "Requests whose prompts and answers were to go on their spans, by what became of them.",
    ("outcome",),
)

METRIC_EXPORTS = Family("edgegw_metric_exports_total", "counter", "Times that all metrics were exported by OTLP.")
METRIC_EXPORT_FAILURES = Family(
    "edgegw_metric_export_failures_total", "counter", "Times that they were not, by the reason for it.", ("reason",)
)

# What a worker calls its gauges in its vitals, and what they are called outside; `worker` is its slot. A gauge that is
# not in here is exposed all the same, as edgegw_worker_NAME.
WORKER_LABELS = ("worker",)
WORKER_GAUGES: dict[str, Family] = {
    gauge: Family(name, "counter" if name.endswith("_total") else "gauge", text, WORKER_LABELS)
    for gauge, name, text in (
        ("in_flight", "edgegw_in_flight_requests", "Requests being served now."),
        ("client_connections", "edgegw_client_connections", "Open connections of clients."),
        ("upstream_busy", "edgegw_upstream_connections_busy", "Connections to providers with a request on them."),
        ("upstream_idle", "edgegw_upstream_connections_idle", "Connections to providers kept for the next request."),
        ("upstream_dialled", "edgegw_upstream_connections_dialled_total", "Connections to providers that were begun."),
        ("upstream_waiting", "edgegw_upstream_waiting", "Requests waiting for a connection to a provider."),
        ("upstream_waits", "edgegw_upstream_waits_total", "Requests that had to wait for one."),
        ("breakers_open", "edgegw_breakers_open", "Targets that are not asked because they kept failing."),
        (
            "loop_lag_seconds",
            "edgegw_loop_lag_seconds",
            "How late the worker's event loop was, at worst, in a second.",
        ),
        ("resident_bytes", "edgegw_worker_resident_memory_bytes", "Resident memory of the worker."),
        ("cpu_seconds", "edgegw_worker_cpu_seconds_total", "CPU time that the worker used."),
        ("started", "edgegw_worker_start_time_seconds", "When the worker started (Unix time)."),
        ("journal_records", "edgegw_worker_journal_records", "Records in the worker's journal since it started."),
        ("limits_degraded", "edgegw_limits_degraded", "1 while limits are kept without the authority, else 0."),
        ("content_kept", "edgegw_content_kept", "Prompts with their answers put down since the worker started."),
        ("content_dropped", "edgegw_content_dropped", "Those that it had no room for, or the disk did not take."),
        (
            "content_waiting_bytes",
            "edgegw_content_waiting_bytes",
            "What of them waits on disk, for the database or for a span.",
        ),
    )
}
WORKER_GAUGE_PREFIX = "edgegw_worker_"
WORKER_GAUGE_HELP = "A gauge of a worker."
# A gauge of this name with a target behind it is a breaker's state.
BREAKER_GAUGE = "breaker:"

# OpenTelemetry's own. Where a label cannot be known it is empty, and not sent by OTLP.
_OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_OPERATION_ATTRIBUTES = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
GEN_AI_DURATION = Family(
    "gen_ai_client_operation_duration_seconds",
    "histogram",
    "As edgegw_attempt_duration_seconds.",
    (*_OPERATION, "error_type"),
    "gen_ai.client.operation.duration",
    "s",
    (*_OPERATION_ATTRIBUTES, "error.type"),
)
GEN_AI_USAGE = Family(
    "gen_ai_client_token_usage",
    "histogram",
    "Tokens of an attempt; the sums are those of edgegw_tokens_total.",
    (*_OPERATION, "gen_ai_token_type"),
    "gen_ai.client.token.usage",
    "{token}",
    (*_OPERATION_ATTRIBUTES, "gen_ai.token.type"),
)
GEN_AI_FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "As edgegw_time_to_first_token_seconds.",
    _OPERATION,
    "gen_ai.server.time_to_first_token",
    "s",
    _OPERATION_ATTRIBUTES,
)
GEN_AI_PER_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "As edgegw_time_per_output_token_seconds.",
    _OPERATION,
    "gen_ai.server.time_per_output_token",
    "s",
    _OPERATION_ATTRIBUTES,
)
OPERATION_NAME = "chat"
