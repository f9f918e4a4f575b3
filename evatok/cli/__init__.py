"""The `evatok` command: options, output, and one file for each family of commands."""
