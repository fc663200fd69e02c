"""The `conviction` command, one file per subcommand."""
