"""The `ezm` command's groups: each module adds its commands to the parser and calls one subpackage."""
