"""The subcommands, one file for each: only they know Hydra's runtime, consoles and exit codes."""
