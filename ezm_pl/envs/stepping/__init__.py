"""Stepping many environments at once: groups, threads, worker processes, the vector environment."""
