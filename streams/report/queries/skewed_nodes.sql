-- Which nodes' clocks are ahead, by how many ms at least, in the last 5 minutes of the data?
SELECT node_id, max(epoch_us(client_time) - epoch_us(server_time)) / 1000 AS ahead_ms_at_least, count(*) AS heartbeats,
       environment, tenant
FROM heartbeats
WHERE arrival > (SELECT max(arrival) FROM heartbeats) - INTERVAL '5 minutes'
GROUP BY environment, tenant, node_id
HAVING ahead_ms_at_least > 0
ORDER BY ahead_ms_at_least DESC, node_id, environment, tenant
