-- Of the later uses of keys that were asked about: what did the cache say, was the first still running, had the TTL passed?
WITH limits AS (
    SELECT a.*, s.value AS told, coalesce(rtrim(s.value, 's')::DOUBLE, 86400) * 1e6 AS ttl_us
    FROM asked a LEFT JOIN settings s
      ON s.config = a.config AND s.name = 'services.' || a.subject || '.idempotency_ttl'),
mine AS (
    SELECT k.*, a.ttl_us, a.kind AS of_kind, k.gap_us > a.ttl_us AS expired,
           k.line = max(k.line) OVER () AS preferred
    FROM keys k JOIN limits a ON k.service_name = a.subject AND k.environment = a.environment AND k.tenant = a.tenant
    WHERE k.window_start >= a.onset AND k.window_start < a.last AND CASE
        WHEN a.detector = 'idempotency_cache' THEN k.stored > 0 AND k.cache = 'miss'
        WHEN a.kind = 'after_ttl' THEN k.gap_us > a.ttl_us AND k.cache IS DISTINCT FROM 'hit'
        ELSE k.verdict = a.kind AND k.number = 1 END),
counted AS (
    SELECT count(*) AS keys, count(*) FILTER (overlapping) AS running,
           count(*) FILTER (NOT overlapping AND (cache = 'miss' OR of_kind = 'after_ttl')) AS missed,
           count(*) FILTER (NOT overlapping AND cache = 'hit') AS hit,
           count(*) FILTER (NOT overlapping AND expired AND cache IS DISTINCT FROM 'hit') AS expired,
           max(gap_us) FILTER (NOT overlapping AND cache IS DISTINCT FROM 'hit') AS rested_us
    FROM mine WHERE preferred)
SELECT a.subject AS service, a.kind, counted.* EXCLUDE (rested_us), rested_us / 1e6 AS rested_s, a.ttl_us / 1e6 AS ttl_s,
       CASE WHEN told IS NULL THEN 'assumed: none is set' ELSE 'as set' END AS ttl_from,
       (SELECT max(filled) FROM coverage WHERE stream = 'requests' AND field = 'payload_hash') AS payloads
FROM limits a CROSS JOIN counted
