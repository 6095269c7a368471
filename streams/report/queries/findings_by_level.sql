-- What was found, pages first?
SELECT level, certainty, detector, kind, subject, onset, last, peak, unit, count
FROM findings
ORDER BY level = 'shadow', level, onset, detector, subject
