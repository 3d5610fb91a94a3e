"""Metrics as the bytes of an OTLP ExportMetricsServiceRequest (opentelemetry-proto 1.x): a second rendering of the
figures that /metrics shows, cumulative since the control process started.

Pure: families in, bytes out. Numbers beside the pieces are those of the fields in the .proto files, tagged as protobuf
writes them; tests read every message with the official classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct, pack

from edgegw.telemetry.cells import Labels, Sample
from edgegw.telemetry.family import Family
from edgegw.telemetry.histogram import Histogram
from edgegw.telemetry.otlp import field, key_value
from edgegw.telemetry.wording import Attributes

_TIMES = Struct("<BQBQ").pack  # start_time_unix_nano 2, time_unix_nano 3, in points of both kinds
_DOUBLE = Struct("<Bd").pack
_INTEGER = Struct("<Bq").pack
_COUNT_AND_SUM = Struct("<BQBd").pack  # count 4, sum 5
_CUMULATIVE = b"\x10\x02"  # aggregation_temporality 2
_MONOTONIC = b"\x18\x01"  # is_monotonic 3
_KINDS = {"gauge": b"\x2a", "counter": b"\x3a", "histogram": b"\x4a"}  # gauge 5, sum 7, histogram 9
_ENDINGS = {"gauge": b"", "counter": _CUMULATIVE + _MONOTONIC, "histogram": _CUMULATIVE}


class MetricEncoder:
    """`resource` is what all metrics of a process say; counters began at `started_ns`."""

    def __init__(self, resource: Attributes, scope: str, version: str, schema_url: str, started_ns: int) -> None:
        self._resource = field(b"\x0a", b"".join(field(b"\x0a", key_value(*pair)) for pair in resource))
        self._scope = field(b"\x0a", field(b"\x0a", scope.encode()) + field(b"\x12", version.encode()))
        self._schema_url = field(b"\x1a", schema_url.encode())
        self._started_ns = started_ns
        self._bounds: dict[tuple[int, ...], bytes] = {}

    def metric(self, family: Family, samples: Iterable[Sample], now_ns: int) -> bytes:
        """One metric, as it stands in `request`; nothing for a family that has no samples yet."""
        points = b"".join(field(b"\x0a", point) for point in self._points(family, samples, now_ns))
        if not points:
            return b""
        about = field(b"\x0a", family.otel_name.encode()) + field(b"\x12", family.help.encode())
        unit = field(b"\x1a", family.otel_unit.encode()) if family.otel_unit else b""
        return field(b"\x12", about + unit + field(_KINDS[family.type], points + _ENDINGS[family.type]))

    def request(self, metrics: Iterable[bytes]) -> bytes:
        """The whole message, from what `metric` made."""
        scope_metrics = field(b"\x12", b"".join((self._scope, *metrics, self._schema_url)))
        return field(b"\x0a", self._resource + scope_metrics)

    def _points(self, family: Family, samples: Iterable[Sample], now_ns: int) -> Iterator[bytes]:
        names = family.attributes or family.labels
        counter = family.type == "counter"
        times = _TIMES(0x11, self._started_ns, 0x19, now_ns)
        for labels, value in samples:
            if isinstance(value, Histogram):
                yield _attributes(b"\x4a", names, labels) + times + self._histogram(value)
            elif counter and isinstance(value, int):
                yield _attributes(b"\x3a", names, labels) + times + _INTEGER(0x31, value)
            else:  # gauges are doubles, whatever they are at the moment: a metric has one type
                yield _attributes(b"\x3a", names, labels) + times + _DOUBLE(0x21, value)

    def _histogram(self, histogram: Histogram) -> bytes:
        counts = histogram.counts
        bounds = self._bounds.get(histogram.bounds)
        if bounds is None:
            each = [bound / histogram.one for bound in histogram.bounds]
            bounds = self._bounds[histogram.bounds] = field(b"\x3a", pack(f"<{len(each)}d", *each))
        head = _COUNT_AND_SUM(0x21, sum(counts), 0x29, histogram.sum / histogram.one)
        return head + field(b"\x32", pack(f"<{len(counts)}Q", *counts)) + bounds


def _attributes(tag: bytes, names: Labels, labels: Labels) -> bytes:
    """What is empty is not known, and left out."""
    return b"".join(field(tag, key_value(name, label)) for name, label in zip(names, labels, strict=True) if label)
