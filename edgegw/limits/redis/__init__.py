"""Limits that are shared by replicas: what is counted stands in Redis, and how we reach it, and do without it."""
