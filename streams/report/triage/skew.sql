-- Between which bounds is the clock off, of the node that was asked about, else of the one that is off the most?
WITH off AS (
    SELECT f.subject AS node, f.finding_id AS finding,
           (f.facts->>'lower_ms')::DOUBLE AS low, (f.facts->>'upper_ms')::DOUBLE AS high
    FROM findings f LEFT JOIN asked a ON true
    WHERE f.detector = 'clock_skew' AND (a.subject IS NULL OR (a.subject = f.subject AND a.environment = f.environment
          AND a.tenant = f.tenant AND f.onset < a.last AND f.last > a.onset))
    ORDER BY f.peak DESC, f.finding_id LIMIT 1),
ways AS (
    SELECT src AS node, dst AS peer, list_min(facts) AS sent_us, NULL AS heard_us FROM clocks
    UNION ALL SELECT dst, src, NULL, list_min(facts) FROM clocks),
pairs AS (
    SELECT node, min(sent_us) + min(heard_us) AS open_us  -- a round trip's length: no offset within it can be seen
    FROM ways WHERE node = coalesce((SELECT subject FROM asked), node) GROUP BY node, peer),
heard AS (SELECT node, min(open_us) AS open_us FROM pairs GROUP BY node),
known AS (
    SELECT count(*) AS clocks, bool_and(open_us IS NOT NULL) AS both_ways, greatest(max(open_us), 0) / 1000 AS open_ms
    FROM heard),
limits AS (
    SELECT coalesce(max(value::DOUBLE) FILTER (name = 'clock_skew.warn_ms'), 100) AS warn_ms,
           coalesce(max(value::DOUBLE) FILTER (name = 'clock_skew.max_one_way_delay_ms'), 1000) AS delay_ms
    FROM settings)
SELECT coalesce(off.node, (SELECT subject FROM asked), 'NODE') AS node, off.finding, clocks,
       CASE WHEN off.low > 0 THEN 'ahead' ELSE 'behind' END AS side,
       CASE WHEN clocks = 0 THEN NULL WHEN off.finding IS NULL THEN 0
            ELSE floor(greatest(off.low, -off.high, 0)) END AS lower_ms,
       CASE WHEN clocks = 0 THEN NULL WHEN off.finding IS NOT NULL THEN ceil(greatest(abs(off.low), abs(off.high)))
            WHEN both_ways THEN warn_ms + ceil(open_ms) ELSE delay_ms + warn_ms END AS upper_ms,
       (SELECT 60000 FROM asked WHERE detector = 'impossible_timestamp' AND kind <> 'back') AS stamp_ms,
       CASE WHEN clocks = 0 THEN 'no message tells of this clock'
            WHEN off.finding IS NOT NULL
                THEN format('{} {} by {:.0f} ms or more, {:.0f} ms at most', off.node, side, lower_ms, upper_ms)
            WHEN both_ways THEN format('messages took so long that up to {:.0f} ms would not be seen', upper_ms)
            ELSE format('heard one way only: up to {:.0f} ms would not be seen', upper_ms) END AS why
FROM known CROSS JOIN limits LEFT JOIN off ON true
