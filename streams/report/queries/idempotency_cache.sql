-- How often did the idempotency cache know a key that had been used before, per service, in the last 24 hours of the data?
SELECT service_name,
       count(*) FILTER (cache = 'hit') AS hits,
       count(*) AS repeats,
       round(100 * hits / repeats, 1) AS hit_percent,
       environment, tenant
FROM keys
WHERE line = 'server' AND cache IN ('hit', 'miss') AND stored > 0
  AND window_start > (SELECT max(window_start) FROM keys) - INTERVAL '24 hours'
GROUP BY environment, tenant, service_name
ORDER BY hit_percent, service_name, environment, tenant
