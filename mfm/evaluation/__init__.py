"""Errors of a model against labels: metrics, tables, figures."""
