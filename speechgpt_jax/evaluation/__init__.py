"""Metric functions and evaluation runs."""
