"""The names of attributes in our spans: OpenTelemetry's semantic conventions where they have one, `edgegw.*` else.

Versions: general and HTTP conventions 1.44.0, those for generative AI 0.1.0 of their own repository (all in
development: names may still change, and then they change here). Nothing but names and the words that stand for us.
"""

from __future__ import annotations

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE = "edgegw"

# General and HTTP, stable but for session.id and user.id.
ERROR_TYPE = "error.type"
HTTP_METHOD = "http.request.method"
HTTP_REQUEST_BODY_SIZE = "http.request.body.size"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
SESSION_ID = "session.id"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
USER_ID = "user.id"

# Generative AI. Input includes what came from a cache or was written to one, output includes reasoning.
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds, of streams
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
# Prompts and answers, as JSON in the shapes that the conventions have schemas for (telemetry/messages.py).
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions"
TOOL_DEFINITIONS = "gen_ai.tool.definitions"

# Ours, of a request …
ATTEMPTS = "edgegw.attempts"
BYTES_OUT = "edgegw.bytes_out"
COST = "edgegw.cost_usd"
FIRST_TOKEN = "edgegw.time_to_first_token"  # seconds
KEY_ID = "edgegw.key_id"
MODEL_ASKED = "edgegw.model_asked"
OVERHEAD = "edgegw.overhead"  # seconds
REQUEST_ID = "edgegw.request_id"
ROUTE = "edgegw.route"
STATE = "edgegw.state"
STREAM = "edgegw.stream"
TENANT = "edgegw.tenant"
USE_CASE = "edgegw.use_case"
# … and of an attempt.
ATTEMPT_KIND = "edgegw.attempt.kind"
ATTEMPT_NUMBER = "edgegw.attempt.number"
CONNECTION_REUSED = "edgegw.attempt.connection_reused"
CONTENT_CUT = "edgegw.content.cut"  # names of those above that do not hold everything
PROVIDER_NAME = "edgegw.provider"
RETRY_REASON = "edgegw.attempt.retry_reason"
UPSTREAM_REQUEST_ID = "edgegw.upstream_request_id"
USAGE_ESTIMATED = "edgegw.usage_estimated"

# What the conventions call providers; one that is not in here goes by its name in the settings.
WELL_KNOWN_PROVIDERS = {
    "anthropic": "anthropic",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "groq": "groq",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "openai": "openai",
    "perplexity": "perplexity",
    "xai": "x_ai",
}
