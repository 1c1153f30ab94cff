"""WHICH values: YAML files, composable on the command line."""
