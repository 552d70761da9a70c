"""Mutation testing: one line of the source is changed at a time, and the tests that belong to it must fail.

    python -m tests.mutants [--only PART ...] [--limit N] [--seed S] [--workers N]

mutmut runs one interpreter and one set of tests for a whole project, cosmic-ray one test command for a session: neither
gives each part the few tests that matter, in the environment that they need, so this is a small runner of our own.

`parts.py` says which source belongs to which tests. Each worker has a copy of the project and one interpreter for each
environment, which imports torch and the like once and is forked for each mutant. `equivalents.toml` names the mutants
that change nothing, each with its reason.
"""
