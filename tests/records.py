"""One record of each format that is known by its fields, as its source logs it."""

NGINX = {
    "time_iso8601": "2026-01-26T12:00:01+00:00",
    "request_time": "1.000",
    "status": "504",
    "proxy_host": "pay:80",
    "remote_addr": "10.0.0.9",
}
ENVOY = {
    "start_time": "2026-01-26T12:00:00.000Z",
    "response_code": 429,
    "duration": 12,
    "upstream_cluster": "outbound|80||pay.shop",
    "response_flags": "-",
    "upstream_request_attempt_count": 3,
}
TRAIL = {
    "eventVersion": "1.08",
    "eventTime": "2026-01-26T12:00:00Z",
    "eventSource": "s3.amazonaws.com",
    "eventName": "GetObject",
    "errorCode": "SlowDown",
    "requestID": "r1",
}
