-- Were keys used again in vain, or were there retries without one, at the service that was asked about or at any?
WITH doubled AS (
    SELECT f.* FROM findings f LEFT JOIN asked a ON true
    WHERE f.detector = 'duplicate_key' AND f.finding_id = coalesce(a.finding_id, f.finding_id)),
worst AS (SELECT * FROM doubled ORDER BY level, kind = 'missing', count DESC, finding_id LIMIT 1),
seen AS (SELECT max(missing) AS missing, count(*) > 0 AS known FROM detectors WHERE name = 'duplicate_key')
SELECT worst.subject AS service, worst.finding_id AS finding, coalesce(worst.facts->>'key', 'KEY') AS key,
       CASE WHEN worst.kind <> 'missing' THEN worst.count ELSE 0 END AS keys,
       CASE WHEN worst.kind = 'missing' THEN worst.count ELSE 0 END AS unkeyed,
       CASE WHEN NOT known THEN 'no detector duplicate_key here'
            WHEN len(missing) > 0 THEN 'no ' || array_to_string(missing, ', ') || ' in any source' END AS why
FROM seen LEFT JOIN worst ON true
