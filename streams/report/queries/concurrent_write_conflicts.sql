-- Which entities were written by nodes that did not know of each other's write, in the last hour of the data?
-- Several writers are no conflict as long as each knew the one before: only writes that did not know count.
SELECT entity_type, entity_id,
       sum(newly)::BIGINT AS conflicting_writes,
       list_sort(list_distinct(list(node_id) || list(witness_node))) AS nodes,
       min(window_start) AS first_seen,
       environment, tenant
FROM writes
WHERE window_start > (SELECT max(arrival) FROM write_log) - INTERVAL '1 hour'
GROUP BY environment, tenant, entity_type, entity_id
ORDER BY conflicting_writes DESC, entity_type, entity_id, environment, tenant
