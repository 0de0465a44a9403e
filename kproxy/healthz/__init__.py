"""Health: whether the proxy is up to date, health check node ports of Services, and the listeners of all servers."""
