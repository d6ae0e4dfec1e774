-- Nginx access log → statistics per 10 s window in Redis. See README.md for the layout of the keys.

SET 'batch.interval' = '1s';

-- The page is live: open windows are written with their totals so far, and once more when they are complete.
SET 'millrace.emit' = 'every-batch';

-- log_format: combined, followed by $request_time and $msec. Without $msec the time has whole seconds.
CREATE TABLE access_log (
  method STRING,
  path STRING,
  status INT,
  body_bytes_sent BIGINT,
  request_time DOUBLE,
  time_local TIMESTAMP_LTZ(3),
  msec TIMESTAMP_LTZ(3),
  ts AS COALESCE(msec, time_local),
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = '${env:ACCESS_LOG_TOPIC:-access_log}',
  'properties.bootstrap.servers' = '${env:KAFKA_BOOTSTRAP_SERVERS}',
  'properties.group.id' = 'nginx-stats',
  'scan.startup.mode' = 'earliest-offset',
  'format' = 'regex',
  'regex.preset' = 'nginx-combined'
);

CREATE VIEW windowed AS
SELECT * FROM TABLE(TUMBLE(TABLE access_log, DESCRIPTOR(ts), INTERVAL '10' SECOND));

-- One hash for all windows: field = window, value = requests. Its values add up to all lines counted.
CREATE TABLE requests (
  window_start TIMESTAMP(3),
  requests BIGINT,
  PRIMARY KEY (window_start) NOT ENFORCED
) WITH (
  'connector' = 'redis',
  'url' = '${env:REDIS_URL}',
  'mode' = 'hash',
  'key' = '${env:NGINX_STATS_KEYS:-nginx}:requests',
  'field' = '{window_start}',
  'value' = 'requests'
);

INSERT INTO requests
SELECT window_start, COUNT(*) FROM windowed GROUP BY window_start, window_end;

-- One hash per window: what the page shows on top. Latencies in milliseconds, error_rate from 0 to 1.
CREATE TABLE totals (
  window_start TIMESTAMP(3),
  requests BIGINT,
  bytes BIGINT,
  errors BIGINT,
  error_rate DOUBLE,
  p50_ms DOUBLE,
  p95_ms DOUBLE,
  p99_ms DOUBLE,
  PRIMARY KEY (window_start) NOT ENFORCED
) WITH (
  'connector' = 'redis',
  'url' = '${env:REDIS_URL}',
  'mode' = 'hash',
  'key' = '${env:NGINX_STATS_KEYS:-nginx}:window:{window_start}',
  'ttl' = '1 day'
);

INSERT INTO totals
SELECT
  window_start,
  COUNT(*),
  SUM(body_bytes_sent),
  COUNT(*) FILTER (WHERE status >= 500),
  CAST(COUNT(*) FILTER (WHERE status >= 500) AS DOUBLE) / COUNT(*),
  1000 * APPROX_PERCENTILE_CONT(request_time, 0.5),
  1000 * APPROX_PERCENTILE_CONT(request_time, 0.95),
  1000 * APPROX_PERCENTILE_CONT(request_time, 0.99)
FROM windowed
GROUP BY window_start, window_end;

-- One hash per window and status.
CREATE TABLE by_status (
  window_start TIMESTAMP(3),
  status INT,
  requests BIGINT,
  bytes BIGINT,
  errors BIGINT,
  p50_ms DOUBLE,
  p95_ms DOUBLE,
  p99_ms DOUBLE,
  PRIMARY KEY (window_start, status) NOT ENFORCED
) WITH (
  'connector' = 'redis',
  'url' = '${env:REDIS_URL}',
  'mode' = 'hash',
  'key' = '${env:NGINX_STATS_KEYS:-nginx}:status:{window_start}:{status}',
  'fields' = 'window_start;status;requests;bytes;errors;p50_ms;p95_ms;p99_ms',
  'ttl' = '1 day'
);

INSERT INTO by_status
SELECT
  window_start,
  status,
  COUNT(*),
  SUM(body_bytes_sent),
  COUNT(*) FILTER (WHERE status >= 500),
  1000 * APPROX_PERCENTILE_CONT(request_time, 0.5),
  1000 * APPROX_PERCENTILE_CONT(request_time, 0.95),
  1000 * APPROX_PERCENTILE_CONT(request_time, 0.99)
FROM windowed
GROUP BY window_start, window_end, status;

-- One sorted set per window: its 20 most requested paths. A path that falls out of the 20 leaves the set.
CREATE TABLE top_paths (
  window_start TIMESTAMP(3),
  path STRING,
  requests BIGINT,
  PRIMARY KEY (window_start, path) NOT ENFORCED
) WITH (
  'connector' = 'redis',
  'url' = '${env:REDIS_URL}',
  'mode' = 'sorted-set',
  'key' = '${env:NGINX_STATS_KEYS:-nginx}:paths:{window_start}',
  'member' = '{path}',
  'score' = 'requests',
  'replace' = 'true',
  'ttl' = '1 day'
);

INSERT INTO top_paths
SELECT window_start, path, requests
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY requests DESC, path) AS place
  FROM (
    SELECT window_start, window_end, path, COUNT(*) AS requests
    FROM windowed
    WHERE path IS NOT NULL
    GROUP BY window_start, window_end, path
  )
)
WHERE place <= 20;
