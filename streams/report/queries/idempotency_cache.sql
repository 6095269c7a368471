-- How often did the idempotency cache know a key that had been used before, per service?
SELECT service_name,
       count(*) FILTER (cache = 'hit') AS hits,
       count(*) AS repeats,
       round(100 * hits / repeats, 1) AS hit_percent
FROM keys
WHERE line = 'server' AND cache IN ('hit', 'miss') AND stored > 0
GROUP BY environment, tenant, service_name
ORDER BY hit_percent, service_name
