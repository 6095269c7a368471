-- Which of all rows that were read were rejected, for which field, and why?
SELECT stream, source, field, reason, count(*) AS rows, min("offset") AS first_record, any_value(raw ORDER BY "offset") AS example
FROM rejects
GROUP BY stream, source, field, reason
ORDER BY rows DESC, stream, source, field, reason
