-- Which hop is the longest: as traces tell, else the deepest service below the one asked about that times out?
WITH RECURSIVE late AS (
    SELECT f.*, coalesce(f.facts->>'longest', f.subject) AS hop,
           CASE WHEN contains(hop, '->') THEN regexp_extract(hop, '->(.*)$', 1, 's') ELSE hop END AS service
    FROM findings f LEFT JOIN asked a ON true
    WHERE f.detector IN ('timeout_cascade', 'timeout_ratio', 'timeout_budget', 'latency_gap', 'latency_shift', 'retry_storm')
      AND (a.finding_id IS NULL OR f.finding_id = a.finding_id
           OR (f.detector IN ('timeout_cascade', 'timeout_ratio', 'timeout_budget') AND f.environment = a.environment
               AND f.tenant = a.tenant AND f.onset < a.last AND f.last > a.onset))),
edges AS (SELECT DISTINCT environment, tenant, caller, service_name FROM calls WHERE caller IS NOT NULL),
below(environment, tenant, service, depth) AS (
    SELECT environment, tenant, service, 0 FROM late WHERE finding_id IN (SELECT finding_id FROM asked)
    UNION
    SELECT environment, tenant, e.service_name, depth + 1
    FROM below JOIN edges e USING (environment, tenant) WHERE e.caller = below.service AND depth < 16),
reached AS (SELECT environment, tenant, service, min(depth) AS depth FROM below GROUP BY ALL),
longest AS (
    SELECT late.* FROM late JOIN reached USING (environment, tenant, service)
    ORDER BY detector <> 'timeout_cascade', depth DESC, detector <> 'timeout_ratio', level, peak DESC, finding_id LIMIT 1)
SELECT longest.service, longest.hop, longest.finding_id AS finding, longest.detector, longest.peak, longest.unit,
       (SELECT sum(attempts)::BIGINT FROM calls) AS attempts
FROM (SELECT 1) LEFT JOIN longest ON true
