-- Which sources deliver rows too late to be judged in their own time, of all rows that were read?
SELECT stream, source, sum(late)::BIGINT AS late, sum(read)::BIGINT AS read, round(100 * sum(late) / sum(read), 2) AS percent
FROM accounting
GROUP BY stream, source
HAVING sum(late) > 0
ORDER BY late DESC, stream, source
