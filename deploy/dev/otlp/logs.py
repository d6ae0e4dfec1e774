"""Sends COUNT log records `NAME 0`, `NAME 1`, … in batches of 100, gzip; a last one has a map for its body."""

import sys

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

protocol, endpoint, name, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
certificate = sys.argv[5] if len(sys.argv) > 5 else None

if protocol == "grpc":
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter

    credentials = None
    if certificate:
        with open(certificate, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
    exporter = OTLPLogExporter(
        endpoint=endpoint, insecure=certificate is None, credentials=credentials, compression=grpc.Compression.Gzip, timeout=60
    )
else:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

    exporter = OTLPLogExporter(endpoint=endpoint, certificate_file=certificate, compression=Compression.Gzip, timeout=60)

# What has been exported, by the exporter's own word.
done = 0
export = exporter.export


def counting(batch):
    global done
    result = export(batch)
    if result.name == "SUCCESS":
        done += len(batch)
    return result


exporter.export = counting

provider = LoggerProvider(resource=Resource.create({"service.name": "shop", "shop.tills": 3}))
provider.add_log_record_processor(
    BatchLogRecordProcessor(exporter, schedule_delay_millis=100, max_queue_size=max(count + 1, 100), max_export_batch_size=100)
)
logger = provider.get_logger("till", "1.2")
span = NonRecordingSpan(
    SpanContext(0x0102030405060708090A0B0C0D0E0F10, 0x0102030405060708, is_remote=False, trace_flags=TraceFlags(1))
)
context = set_span_in_context(span)
for number in range(count + 1):
    logger.emit(
        LogRecord(
            timestamp=1_700_000_000_123_456_789 + number,
            observed_timestamp=1_700_000_001_000_000_000,
            context=context,
            severity_number=SeverityNumber.WARN,
            severity_text="WARNING",
            body=f"{name} {number}" if number < count else {"last": name, "of": count},
            attributes={"till": number % 3, "open": True, "price": 2.5, "names": ["a", "b"]},
        )
    )
provider.shutdown()
if done != count + 1:
    sys.exit(f"{done} of {count + 1} records were exported")
