"""Many replicas and tenants in virtual time, with the production's lease, bucket, channel and Redis authority.

`python -m load.limits_simulation`. Seeded: the same options give the same figures.
"""
