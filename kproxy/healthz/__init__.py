"""HTTP servers: proxy health, health check node ports, metrics and status addresses."""
