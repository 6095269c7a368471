-- How fast does the clock drift, of the node that was asked about, else of the one that drifts the most?
WITH drifts AS (
    SELECT f.subject AS node, f.peak AS rate, f.finding_id AS finding
    FROM findings f LEFT JOIN asked a ON true
    WHERE f.detector = 'clock_drift' AND f.kind = 'drift' AND (a.subject IS NULL OR (a.subject = f.subject
          AND a.environment = f.environment AND a.tenant = f.tenant AND f.onset < a.last AND f.last > a.onset))
    ORDER BY f.peak DESC, f.finding_id LIMIT 1),
ways AS (SELECT src AS node, true AS sent FROM clocks UNION ALL SELECT dst, false FROM clocks),
nodes AS (
    SELECT node, bool_or(sent) AND bool_or(NOT sent) AS both_ways
    FROM ways WHERE node = coalesce((SELECT subject FROM asked), node) GROUP BY node),
heard AS (SELECT count(*) AS clocks, coalesce(bool_and(both_ways), false) AS both_ways FROM nodes),
seen AS (SELECT max(missing) AS missing, count(*) > 0 AS known FROM detectors WHERE name = 'clock_drift')
SELECT coalesce(drifts.node, (SELECT subject FROM asked), 'NODE') AS node, finding, clocks,
       CASE WHEN NOT known THEN 'no detector clock_drift here'
            WHEN len(missing) > 0 THEN 'no ' || array_to_string(missing, ', ') || ' in any source'
            WHEN finding IS NOT NULL THEN NULL
            WHEN clocks = 0 THEN 'no message tells of this clock'
            WHEN NOT both_ways THEN 'heard one way only: a drift would not be seen' END AS why,
       CASE WHEN why IS NULL THEN coalesce(rate, 0) END AS rate
FROM heard CROSS JOIN seen LEFT JOIN drifts ON true
