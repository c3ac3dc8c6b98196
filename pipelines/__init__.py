"""The program: one file per stage, the runner, configuration, command line, tracking and report."""
