"""The subcommands, one file for each: only they know Hydra's runtime, consoles and exit codes.

Each takes a composed config and raises `InputError` for any wrong input, which `hydra_app` reports.
"""
