"""Mutation testing: changes one line of the source at a time and checks that one of its tests fails.

    python -m tests.mutants [--only PART ...] [--limit N] [--seed S] [--workers N]

This is a runner of its own because each part of the source needs other tests in another environment: mutmut has one
interpreter and one set of tests for a project, cosmic-ray one test command for a session.

`parts.py` lists which tests cover which source. Each worker has a copy of the project and one process for each
environment, which imports torch and other slow packages once and is forked for each mutant. `equivalents.toml` lists
mutants that no test can detect, each with the reason.
"""
