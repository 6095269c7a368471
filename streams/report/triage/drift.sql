-- How fast does the clock drift, of the node that was asked about, else of the one that drifts the most?
WITH drifts AS (
    SELECT f.subject AS node, f.peak AS rate, f.finding_id AS finding
    FROM findings f LEFT JOIN asked a ON true
    WHERE f.detector = 'clock_drift' AND f.kind = 'drift' AND (a.subject IS NULL OR (a.subject = f.subject
          AND a.environment = f.environment AND a.tenant = f.tenant AND f.onset < a.last AND f.last > a.onset))
    ORDER BY f.peak DESC, f.finding_id LIMIT 1),
heard AS (
    SELECT count(DISTINCT node) AS clocks FROM (SELECT src AS node FROM clocks UNION ALL SELECT dst FROM clocks)
    WHERE node = coalesce((SELECT subject FROM asked), node)),
seen AS (SELECT max(missing) AS missing, count(*) > 0 AS known FROM detectors WHERE name = 'clock_drift')
SELECT coalesce(drifts.node, (SELECT subject FROM asked), 'NODE') AS node, finding, clocks,
       CASE WHEN NOT known THEN 'no detector clock_drift here'
            WHEN len(missing) > 0 THEN 'no ' || array_to_string(missing, ', ') || ' in any source'
            WHEN clocks = 0 THEN 'no message tells of this clock' END AS why,
       CASE WHEN why IS NULL THEN coalesce(rate, 0) END AS rate
FROM heard CROSS JOIN seen LEFT JOIN drifts ON true
