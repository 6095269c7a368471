-- Which idempotency keys took effect twice in the last 24 hours of the data, where, and when was the second time?
SELECT idempotency_key, service_name, window_start AS second_effect, attempt, earlier_attempt, certain, environment, tenant
FROM keys
WHERE verdict = 'applied_twice' AND number = 1
  AND window_start > (SELECT max(window_start) FROM keys) - INTERVAL '24 hours'
ORDER BY window_start, idempotency_key, environment, tenant
