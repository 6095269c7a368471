-- What was found in all of this data, pages first?
SELECT level, certainty, detector, kind, subject, onset, last, peak, unit, count, environment, tenant
FROM findings
ORDER BY level = 'shadow', level, onset, detector, subject, environment, tenant
