"""Requests and pictures that mean harm, made here, so that no file of them lies about."""
