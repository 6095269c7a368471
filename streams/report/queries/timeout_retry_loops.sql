-- Which services were retried into timeouts again, in the last 24 hours of the data?
-- Both sides may log one attempt: the client's lines count, and the server's where an edge has no client's.
SELECT service_name,
       count(*) AS timeout_retries,
       round(avg(retry_count), 2) AS avg_retries,
       max(retry_count) AS max_retries,
       environment, tenant
FROM requests AS r
WHERE status = 'timeout' AND retry_count > 0
  AND arrival > (SELECT max(arrival) FROM requests) - INTERVAL '24 hours'
  AND (side IS DISTINCT FROM 'server' OR NOT EXISTS (
      FROM calls AS c
      WHERE c.environment = r.environment AND c.tenant = r.tenant AND c.caller IS NOT DISTINCT FROM r.caller
        AND c.service_name = r.service_name AND c.side IS DISTINCT FROM 'server'))
GROUP BY environment, tenant, service_name
ORDER BY timeout_retries DESC, service_name, environment, tenant
