"""What the gateway costs: a mock provider, a load client, the proxies it is compared with, and the arithmetic.

Runs beside the product, never inside it: nothing in here is imported by `edgegw`.
"""
