"""What makes files of this repository out of others'. Run by make; no part of the gateway."""
