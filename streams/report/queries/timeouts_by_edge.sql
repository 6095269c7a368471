-- On which edges did, in the last 24 hours of the data, what share of the attempts time out, and how many were retries?
-- Both sides may log one attempt: the client's lines count, and the server's where an edge has no client's.
WITH sided AS (
    SELECT *, side IS DISTINCT FROM 'server' AS client,
           bool_or(side IS DISTINCT FROM 'server') OVER (PARTITION BY environment, tenant, caller, service_name)
               AS has_client
    FROM calls WHERE window_start > (SELECT max(window_start) FROM calls) - INTERVAL '24 hours')
SELECT coalesce(if(caller = '?', '\?', replace(replace(caller, '\', '\\'), '->', '-\>')), '?') || '->' || service_name AS edge,
       sum(attempts)::BIGINT AS attempts,
       sum(timeouts)::BIGINT AS timeouts,
       round(100 * sum(timeouts) / sum(attempts), 2) AS timeout_percent,
       sum(retries)::BIGINT AS retries,
       environment, tenant
FROM sided
WHERE client = has_client
GROUP BY environment, tenant, caller, service_name
ORDER BY timeout_percent DESC, edge, environment, tenant
