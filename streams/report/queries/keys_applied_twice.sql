-- Which idempotency keys took effect twice, where, and when was the second time?
SELECT idempotency_key, service_name, window_start AS second_effect, attempt, earlier_attempt, certain
FROM keys
WHERE verdict = 'applied_twice' AND number = 1
ORDER BY window_start, idempotency_key
