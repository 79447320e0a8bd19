"""Inert descriptions: models, accelerators, clusters, workloads, deployments. Validated when made,
they do nothing.
"""
