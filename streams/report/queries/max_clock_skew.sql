-- How far off are the clocks in the last 5 minutes of the data: in ms, and how many nodes by more than 100 ms?
-- The smallest receive - send of a node is its delay less what its clock is ahead: below zero it must be ahead.
-- A node behind can't be told from a slow way by one-way heartbeats: slowest_ms is the sum of both.
WITH recent AS (
    SELECT environment, tenant, node_id, min(epoch_us(server_time) - epoch_us(client_time)) / 1000 AS least_ms
    FROM heartbeats
    WHERE arrival > (SELECT max(arrival) FROM heartbeats) - INTERVAL '5 minutes'
    GROUP BY ALL)
SELECT greatest(0, max(-least_ms)) AS max_ahead_ms,
       count(*) FILTER (-least_ms > 100) AS nodes_ahead_over_100ms,
       greatest(0, max(least_ms)) AS slowest_ms,
       count(*) AS nodes,
       environment, tenant
FROM recent
GROUP BY environment, tenant
ORDER BY max_ahead_ms DESC, environment, tenant
