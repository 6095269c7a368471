-- What is the service of the longest hop: database, external or internal?
SELECT $service AS service, (SELECT kind FROM services WHERE name = $service) AS kind
