"""Admission, scheduling, cancellation and memory limits; knows no HTTP."""
