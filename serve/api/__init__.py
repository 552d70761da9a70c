"""HTTP: routes, requests and the JSON contract."""
