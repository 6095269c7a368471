-- Which services were retried into timeouts again, in the last 24 hours of the data?
SELECT service_name,
       count(*) AS timeout_retries,
       round(avg(retry_count), 2) AS avg_retries,
       max(retry_count) AS max_retries,
       environment, tenant
FROM requests
WHERE status = 'timeout' AND retry_count > 0 AND side IS DISTINCT FROM 'server'
  AND arrival > (SELECT max(arrival) FROM requests) - INTERVAL '24 hours'
GROUP BY environment, tenant, service_name
ORDER BY timeout_retries DESC, service_name, environment, tenant
