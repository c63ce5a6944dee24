"""Bundles in a registry: pushed and pulled as OCI artifacts of the CNCF's ModelPack."""
