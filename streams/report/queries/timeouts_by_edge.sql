-- On which edges did, in the last 24 hours of the data, what share of the attempts time out, and how many were retries?
SELECT coalesce(if(caller = '?', '\?', replace(replace(caller, '\', '\\'), '->', '-\>')), '?') || '->' || service_name AS edge,
       sum(attempts)::BIGINT AS attempts,
       sum(timeouts)::BIGINT AS timeouts,
       round(100 * sum(timeouts) / sum(attempts), 2) AS timeout_percent,
       sum(retries)::BIGINT AS retries,
       environment, tenant
FROM calls
WHERE side IS DISTINCT FROM 'server' AND window_start > (SELECT max(window_start) FROM calls) - INTERVAL '24 hours'
GROUP BY environment, tenant, caller, service_name
ORDER BY timeout_percent DESC, edge, environment, tenant
LIMIT 20
